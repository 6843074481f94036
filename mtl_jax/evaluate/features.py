"""Features of frozen images: every image goes through the network once.

Pixels stay on the host: each is read once, and the device already holds the
training split.
"""

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax import processes, progress
from mtl_jax.data import augment
from mtl_jax.evaluate import protocol
from mtl_jax.models import layers


def make(algorithm, store, normalise_features):
  """Returns the jitted (variables, uint8 [B, h, w, c]) -> float32 [B, D].

  Args:
    algorithm: whose `features` are taken.
    store: whose constants normalise the images.
    normalise_features: whether features get unit length.
  """
  def batch_features(variables, images):
    features = algorithm.features(variables, augment.normalise(
        images, store.mean, store.std))
    return layers.unit_norm(features) if normalise_features else features

  return jax.jit(batch_features)


def in_batches(batch_features, variables, store, ids, batch_size, show=False,
               shared=False):
  """Returns the features of the images `ids`, in a list of batches [B, D].

  The last batch is filled up: rows beyond len(ids) are to be left out. With
  `show`, a terminal shows how far it is. With `shared` each process computes a
  part of the batches, which are the same as in one process.
  """
  batches = []
  parts = list(protocol.chunks(len(ids), batch_size))
  own = processes.mine(parts) if shared else parts
  with progress.bar(sum(count for _, count in own), 'features',
                    show=show) as bar:
    for rows, count in own:
      batches.append(batch_features(variables, store.images[ids[rows]]))
      bar.update(count)
  return processes.joined(batches, len(parts)) if shared else batches


def of_tasks(batch_features, variables, store, tasks, batch_size, show=False,
             shared=False):
  """Returns the images that tasks use, int [I], sorted, and their features.

  Args:
    batch_features: of `make`.
    variables: of the algorithm.
    store: the split.
    tasks: list of protocol.Tasks.
    batch_size: images of a forward pass.
    show, shared: as in `in_batches`.
  """
  used = np.unique(np.concatenate(
      [ids.ravel() for part in tasks for ids in (part.support, part.query)]))
  return used, jnp.concatenate(
      in_batches(batch_features, variables, store, used, batch_size, show,
                 shared))


def of_store(algorithm, variables, store, normalise_features, batch_size,
             show=False):
  """Returns the features of all images of a store: float32 [I, D]."""
  batch_features = make(algorithm, store, normalise_features)
  ids = np.arange(len(store.images))
  return np.concatenate([np.asarray(part) for part in in_batches(
      batch_features, variables, store, ids, batch_size, show)])[:len(ids)]


def pixels(algorithm):
  """Returns an algorithm whose features are the pixels themselves."""
  return algorithm._replace(features=_pixels)


def are_pixels(algorithm):
  """Returns whether features cost nothing, and so need not be kept."""
  return algorithm.features is _pixels


def _pixels(variables, images):
  del variables
  return images.reshape(len(images), -1)
