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
    packages=[*setuptools.find_packages(include=('mtl_jax', 'mtl_jax.*')),
              'mtl_jax.configs'],
    # A clone has them at the top; config/named.py finds them in both places.
    package_dir={'mtl_jax.configs': 'configs'},
    package_data={'mtl_jax.data': ['splits/*.json']},
    entry_points={'console_scripts': [
        'mtl-jax = mtl_jax.main:main',
        'mtl-jax-adapt = mtl_jax.adapt.__main__:main',
        'mtl-jax-config = mtl_jax.config.__main__:main',
        'mtl-jax-data = mtl_jax.data.__main__:main',
        'mtl-jax-ntk = mtl_jax.ntk.__main__:main',
        'mtl-jax-report = mtl_jax.report.__main__:main']},
    python_requires='>=3.11',
    install_requires=[
        'absl-py>=2.3.1',
        'array_record>=0.8.1',  # what TFDS reads without TensorFlow
        'chex>=0.1.91',
        'etils[epath]>=1.13',
        'flax>=0.12.7',
        'jax>=0.10',
        'jaxlib>=0.10',
        'matplotlib>=3.10',
        'ml-collections>=1.1',
        'numpy>=2.1',
        'optax>=0.2.8',
        'orbax-checkpoint>=0.12',
        'pillow>=11',
        'tensorflow-datasets>=4.9.10',  # 4.9.9 fails with protobuf 7
        'tqdm>=4.67',
    ],
    extras_require={
        'cuda': ['jax[cuda12]>=0.10'],
        'tpu': ['jax[tpu]>=0.10'],
        'gs': ['gcsfs>=2026.4'],  # workdirs in gs://...
        'hdf5': ['h5py>=3.12'],  # CIFAR-100 as torchmeta keeps it
        'tensorboard': ['tensorboard>=2.17', 'tensorboardX>=2.6.2'],
        'wandb': ['wandb>=0.31'],
        'test': ['h5py>=3.12', 'pytest>=8.0', 'pytest-xdist>=3.6',
                 'ruff>=0.9', 'safetensors>=0.4', 'scikit-learn>=1.6',
                 'setuptools>=70.1', 'tensorboardX>=2.6.2'],
    },
)
