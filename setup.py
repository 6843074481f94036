"""Packaging of mtl_jax."""

import pathlib

import setuptools

HERE = pathlib.Path(__file__).parent

setuptools.setup(
    name='mtl_jax',
    version='0.1.0',
    description='Few-shot representation learning in JAX: joint multi-task '
    'learning against gradient-based meta-learning.',
    long_description=(HERE / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=setuptools.find_packages(include=('mtl_jax', 'mtl_jax.*')),
    python_requires='>=3.11',
    install_requires=[
        'absl-py>=2.1',
        'array_record>=0.6',  # what TFDS reads without TensorFlow
        'chex>=0.1.90',
        'etils[epath]>=1.10',
        'flax>=0.12',
        'jax>=0.10',
        'jaxlib>=0.10',
        'matplotlib>=3.10',
        'ml-collections>=1.0',
        'numpy>=2.0',
        'optax>=0.2.6',
        'orbax-checkpoint>=0.11.25',
        'pillow>=10.3',
        'tensorflow-datasets>=4.9.9',
        'tqdm>=4.66',
    ],
    extras_require={
        'cuda': ['jax[cuda12]>=0.10'],
        'tpu': ['jax[tpu]>=0.10'],
        'tensorboard': ['tensorboard>=2.17', 'tensorboardX>=2.6.2'],
        'test': ['pytest>=8.0', 'pytest-xdist>=3.6', 'ruff>=0.9',
                 'scikit-learn>=1.6'],
    },
)
