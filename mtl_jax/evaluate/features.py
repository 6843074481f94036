"""Features of frozen images: every image goes through the network once.

Pixels stay on the host: each is read once, and the device already holds the
training split.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from mtl_jax import devices, processes, progress
from mtl_jax.data import augment
from mtl_jax.evaluate import protocol
from mtl_jax.models import layers


class Network(NamedTuple):
  """How features are computed: (variables, uint8 images) -> float32 features.

  of_batch: jitted, [B, h, w, c] -> [B, D] on one device.
  of_batches: jitted, [n B, h, w, c] -> [n B, D], B on each of the n devices of
    `mesh`. No image depends on another, so the devices exchange nothing.
  """

  of_batch: Callable
  of_batches: Callable
  mesh: Any


def make(algorithm, store, normalise_features):
  """Returns a Network of all devices of this process.

  Args:
    algorithm: whose `features` are taken.
    store: whose constants normalise the images.
    normalise_features: whether features get unit length.
  """
  def batch_features(variables, images):
    features = algorithm.features(variables, augment.normalise(
        images, store.mean, store.std))
    return layers.unit_norm(features) if normalise_features else features

  of_batch = jax.jit(batch_features)
  # Pixels take longer to move than to make.
  mesh = devices.mesh_of_tasks(1 if are_pixels(algorithm) else None)
  divided = P(devices.AXIS)
  return Network(of_batch, of_batch if mesh.size == 1 else jax.jit(
      jax.shard_map(batch_features, mesh=mesh, check_vma=False,
                    in_specs=(P(), divided), out_specs=divided)), mesh)


def in_batches(network, variables, store, ids, batch_size, show=False,
               shared=False):
  """Returns the features of the images `ids`, in a list of [n B, D].

  The last ones are filled up: rows beyond len(ids) are to be left out. With
  `show`, a terminal shows how far it is. With `shared` each process computes a
  part of them, which are the same as in one process.

  Args:
    network: of `make`.
    variables: of the algorithm.
    store: the split.
    ids: int [I].
    batch_size: B, images of a forward pass on one device.
    show, shared: see above.
  """
  parallel, batches = network.mesh.size, []
  filled = np.pad(ids, (0, -len(ids) % parallel), mode='edge')
  parts = list(protocol.chunks(len(filled), parallel * batch_size))
  own = processes.mine(parts) if shared else parts
  if parallel > 1:
    variables = devices.everywhere(variables, network.mesh)
  with progress.bar(sum(count for _, count in own), 'features',
                    show=show) as bar:
    for rows, count in own:
      batches.append(network.of_batches(variables, store.images[filled[rows]]))
      bar.update(count)
  home = network.mesh.devices.flat[0]
  batches = [jax.device_put(batch, home) for batch in batches]
  return processes.joined(batches, len(parts)) if shared else batches


def used_by(tasks):
  """Returns the images that a list of protocol.Tasks uses, int [I], sorted."""
  return np.unique(np.concatenate(
      [ids.ravel() for part in tasks for ids in (part.support, part.query)]))


def of_tasks(network, variables, store, tasks, batch_size, show=False,
             shared=False):
  """Returns the images that tasks use, int [I], sorted, and their features.

  Args:
    network: of `make`.
    variables: of the algorithm.
    store: the split.
    tasks: list of protocol.Tasks.
    batch_size, show, shared: as in `in_batches`.
  """
  used = used_by(tasks)
  return used, jnp.concatenate(
      in_batches(network, variables, store, used, batch_size, show, shared))


def of_store(algorithm, variables, store, normalise_features, batch_size,
             show=False):
  """Returns the features of all images of a store: float32 [I, D]."""
  ids = np.arange(len(store.images))
  return np.concatenate([np.asarray(part) for part in in_batches(
      make(algorithm, store, normalise_features), variables, store, ids,
      batch_size, show)])[:len(ids)]


def pixels(algorithm):
  """Returns an algorithm whose features are the pixels themselves."""
  return algorithm._replace(features=_pixels)


def are_pixels(algorithm):
  """Returns whether features cost nothing, and so need not be kept."""
  return algorithm.features is _pixels


def _pixels(variables, images):
  del variables
  return images.reshape(len(images), -1)
