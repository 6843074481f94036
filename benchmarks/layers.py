"""Times our layers and backbones against plain Flax, forward and backward.

    python benchmarks/layers.py [--repeats 5]
                                [--only layers|step|tasks|resnet12]
                                [--rows 1] [--images 2]

Each line interleaves its variants and gives the median milliseconds of each
and their ratios to the first. On a machine that is shared, the processor
time in brackets (all threads together) is steadier than the wall clock.
`step` is a whole training step of joint multi-task learning: backbone,
unit-length features, five class rows, cross-entropy, SGD. `tasks` compares
one step of T mapped tasks with one of a single task of as many images.
`resnet12` is the same step of that network, with and without dropping, and
its widest convolutions. --rows and --images make the tables smaller.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from mtl_jax import models
from mtl_jax.models import layers

# Shapes [images per task, h, w, c]; TASKS has the number of tasks in front.
LAYERS = ((200, 28, 28, 64), (50, 84, 84, 64), (200, 28, 28, 1),
          (50, 84, 84, 3))
STEPS = ((50, 28, 28, 1), (200, 28, 28, 1), (50, 84, 84, 3), (200, 84, 84, 3))
TASKS = ((4, 50, 28, 28, 1), (2, 25, 84, 84, 3))
RESNET12 = ((50, 32, 32, 3), (25, 84, 84, 3))
WIDE = ((25, 42, 42, 160), (25, 21, 21, 320), (25, 10, 10, 640))


class FlaxNorm(nn.Module):
  """Flax's BatchNorm in the place of ours."""

  @nn.compact
  def __call__(self, x):
    """Returns x normalised by its own statistics."""
    return nn.BatchNorm(use_running_average=False, momentum=0.)(x)


class FlaxConv4(nn.Module):
  """Conv4 of Flax's own layers; `ours` names layers to exchange."""

  ours: tuple[str, ...] = ()

  @nn.compact
  def __call__(self, images, *, train):
    """Returns features [B, D]."""
    x = images
    for _ in range(4):
      x = (layers.Conv3x3(64)(x) if 'conv' in self.ours
           else nn.Conv(64, (3, 3), use_bias=False)(x))
      x = (layers.BatchNorm()(x, train) if 'norm' in self.ours
           else FlaxNorm()(x))
      x = (nn.relu(layers.max_pool(x)) if 'pool' in self.ours
           else nn.max_pool(nn.relu(x), (2, 2), (2, 2)))
    return x.reshape(len(x), -1)


class FlaxResnet12(nn.Module):
  """ResNet-12 of Flax's own layers, without dropping."""

  @nn.compact
  def __call__(self, images, *, train):
    """Returns features [B, 640]."""
    x = images
    for width in (64, 160, 320, 640):
      short = FlaxNorm()(nn.Conv(width, (1, 1), use_bias=False)(x))
      for i in range(3):
        x = FlaxNorm()(nn.Conv(width, (3, 3), use_bias=False)(x))
        x = nn.leaky_relu(x if i < 2 else x + short, 0.1)
      x = nn.max_pool(x, (2, 2), (2, 2))
    return jnp.mean(x, (1, 2))


def interleave(title, variants, repeats):
  """Times {name: thunk} round robin and prints one line."""
  walls = {name: [] for name in variants}
  cpus = {name: [] for name in variants}
  for thunk in variants.values():
    jax.block_until_ready(thunk())
  for _ in range(repeats):
    for name, thunk in variants.items():
      wall, cpu = time.perf_counter(), time.process_time()
      jax.block_until_ready(thunk())
      walls[name].append(time.perf_counter() - wall)
      cpus[name].append(time.process_time() - cpu)
  first = next(iter(variants))
  median = {k: statistics.median(v) for k, v in walls.items()}
  cpu = {k: statistics.median(v) for k, v in cpus.items()}
  print(f'{title:34s}', '  '.join(
      f'{k} {1e3 * median[k]:.1f} ({1e3 * cpu[k]:.1f}) '
      f'x{median[k] / median[first]:.2f} (x{cpu[k] / cpu[first]:.2f})'
      for k in variants), flush=True)


def gradient_of(module, images, **kwargs):
  """Returns a thunk: gradient of a layer's parameters and its input."""
  variables = module.init(jax.random.key(1), images, **kwargs)

  def loss(variables, images):
    value, _ = module.apply(variables, images, mutable=['batch_stats'],
                            **kwargs)
    return jnp.sum(value ** 2)

  # The network's own images need no gradient.
  arguments = (0, 1) if images.shape[-1] > 3 else (0,)
  grad = jax.jit(jax.grad(loss, arguments))
  return lambda: grad(variables, images)


def rows(table, args):
  """Returns the shapes of a table that the flags ask for."""
  limit = args.images or max(shape[0] for shape in table)
  return [(min(shape[0], limit), *shape[1:]) for shape in table[:args.rows]]


def time_layers(args):
  """Prints convolution, pooling and BatchNorm at the sizes of LAYERS."""
  for shape in rows(LAYERS, args):
    images = jax.random.normal(jax.random.key(0), shape)
    interleave(f'convolution {shape}', {
        'flax': gradient_of(nn.Conv(64, (3, 3), use_bias=False), images),
        'ours': gradient_of(layers.Conv3x3(64), images)}, args.repeats)
    if shape[-1] == 64:
      grad = lambda pool: jax.jit(jax.grad(lambda x: jnp.sum(pool(x) ** 2)))
      flax = grad(lambda x: nn.max_pool(x, (2, 2), (2, 2)))
      ours = grad(layers.max_pool)
      interleave(f'max pool {shape}', {
          'flax': lambda f=flax, x=images: f(x),
          'ours': lambda f=ours, x=images: f(x)}, args.repeats)
      interleave(f'BatchNorm {shape}', {
          'flax': gradient_of(FlaxNorm(), images),
          'ours': gradient_of(layers.BatchNorm(), images, own=True)},
                 args.repeats)


def make_step(model, shape):
  """Returns a thunk: one step on images [T, B, h, w, c], shared weights."""
  images = jax.random.normal(jax.random.key(0), shape)
  labels = jnp.arange(shape[1]) % 5
  variables = jax.jit(lambda: model.init(
      jax.random.key(1), images[0], train=True))()
  features = jax.eval_shape(lambda: model.apply(
      variables, images[0], train=True, mutable=['batch_stats'],
      rngs={'dropout': jax.random.key(3)})[0])
  rows = 0.05 * jax.random.normal(jax.random.key(2), (5, features.shape[-1]))

  def loss(params, images, key, schedule):
    features, mutated = model.apply(
        {**variables, 'params': params['body']}, images, train=True,
        mutable=['batch_stats'], rngs={'dropout': key}, **schedule)
    logits = layers.unit_norm(features) @ params['rows'].T
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(
        logits, labels)), mutated

  def mean_loss(params, images, keys, schedule):
    losses, mutated = jax.vmap(loss, (None, 0, 0, None))(
        params, images, keys, schedule)
    return jnp.mean(losses), mutated

  @jax.jit
  def step(params, images, keys, schedule):
    grads, mutated = jax.grad(mean_loss, has_aux=True)(
        params, images, keys, schedule)
    return jax.tree.map(lambda p, g: p - 0.01 * g, params, grads), mutated

  params = {'body': variables['params'], 'rows': rows}
  # Arguments, which XLA cannot fold into constants as closures are.
  keys = jax.random.split(jax.random.key(3), shape[0])
  schedule = ({} if isinstance(model, FlaxConv4 | FlaxResnet12)
              else {'tasks_seen': jnp.int32(40000)})
  return lambda: step(params, images, keys, schedule)


def time_steps(args):
  """Prints whole steps, and steps with one of our layers exchanged."""
  for shape in rows(STEPS, args):
    shape = (1, *shape)
    interleave(f'step {shape[1:]}', {
        'flax': make_step(FlaxConv4(), shape),
        'ours': make_step(models.create('conv4'), shape),
        'without conv': make_step(FlaxConv4(('pool', 'norm')), shape),
        'without pool': make_step(FlaxConv4(('conv', 'norm')), shape),
        'without norm': make_step(FlaxConv4(('conv', 'pool')), shape),
    }, args.repeats)


def time_tasks(args):
  """Prints a step of T tasks against one task of as many images."""
  for tasks, batch, *image in TASKS[:args.rows]:
    batch = min(batch, args.images or batch)
    interleave(f'tasks {tasks} x {batch}, {tuple(image)}', {
        'one': make_step(models.create('conv4'), (1, tasks * batch, *image)),
        'mapped': make_step(models.create('conv4'), (tasks, batch, *image)),
        'flax mapped': make_step(FlaxConv4(), (tasks, batch, *image)),
    }, args.repeats)


def time_resnet12(args):
  """Prints steps of ResNet-12 and its convolutions."""
  for shape in rows(WIDE, args):
    images = jax.random.normal(jax.random.key(0), shape)
    flax = nn.Conv(shape[-1], (3, 3), use_bias=False)
    interleave(f'convolution {shape}', {
        'flax': gradient_of(flax, images),
        'ours': gradient_of(layers.Conv3x3(shape[-1]), images)}, args.repeats)
  for shape in rows(RESNET12, args):
    interleave(f'resnet12 {shape}', {
        'flax': make_step(FlaxResnet12(), (1, *shape)),
        'ours': make_step(models.create('resnet12'), (1, *shape)),
        'not dropping': make_step(
            models.create('resnet12', drop_rate=0.), (1, *shape)),
    }, args.repeats)


TABLES = {'layers': time_layers, 'step': time_steps, 'tasks': time_tasks,
          'resnet12': time_resnet12}


def parse(argv=None):
  """Returns the flags."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--only', choices=TABLES, default=None)
  parser.add_argument('--rows', type=int, default=None,
                      help='of each table; default all')
  parser.add_argument('--images', type=int, default=None,
                      help='per task at most; default those of the table')
  return parser.parse_args(argv)


def main(argv=None):
  """Prints the tables."""
  args = parse(argv)
  for name, table in TABLES.items():
    if args.only in (None, name):
      table(args)


if __name__ == '__main__':
  main()
