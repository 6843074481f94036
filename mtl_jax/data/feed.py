"""Gather a run's pixels on the host, ahead of the step that needs them.

For data sets that do not fit on a device (`config.data.store = 'host'`). Which
images a step sees is drawn by the same function as on the device, so the two
give the same episodes.
"""

import collections
import concurrent.futures

import jax
import numpy as np

from mtl_jax.data import episodes

PLACES = ('auto', 'device', 'host')  # of the training pixels
AHEAD = 2  # steps that wait, ready, for the device


def make(store, key, train, tasks, divide):
  """Returns numbers of steps -> iterator of the pixels of those steps.

  They are uint8 [T, N, K + Q, h, w, c] for each step, and [T, S, N, ..] for
  S seeds side by side. Meanwhile a thread gathers the pixels of the next steps
  and lays them out. A process gathers those of its own tasks alone.

  Args:
    store: the training store.
    key: of the run's training stream, as the step gets it; [S] for S seeds.
    train: section `train` of a config: ways, shots and queries of a task.
    tasks: range of the numbers of this process' tasks in a step.
    divide: lays their pixels out over the devices: devices.Compiled.divide.
  """
  # The ids are a few hundred numbers: no reason to wait for an accelerator.
  try:
    host = jax.local_devices(backend='cpu')[0]
  except RuntimeError:  # JAX_PLATFORMS names the accelerator alone
    host = jax.local_devices()[0]
  key, offsets = jax.device_put((key, store.offsets), host)

  def image_ids(key, step):
    keys = episodes.task_keys(jax.random.fold_in(key, step), tasks.start,
                              len(tasks))
    draw = lambda k: episodes.draw_ids(offsets, k, train)[1]
    return jax.vmap(draw)(keys)

  ids_of = jax.jit(jax.vmap(image_ids, (0, None), out_axes=1) if key.ndim
                   else image_ids)

  def gather(step):
    with jax.default_device(host):
      ids = np.asarray(ids_of(key, np.int32(step)))
    return divide(store.images[ids])

  def batches(numbers):
    waiting = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
      for step in numbers:
        waiting.append(pool.submit(gather, step))
        if len(waiting) > AHEAD:
          yield waiting.popleft().result()
      while waiting:
        yield waiting.popleft().result()

  return batches
