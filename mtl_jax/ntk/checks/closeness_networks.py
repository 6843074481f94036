"""Networks of CNN-4's blocks, trained by ANIL and by MTL on the same tasks.

Both methods start from the same backbone for the same seed, see the same tasks
in the same order, and take the same number of Adam steps. What they say on
unseen tasks is returned as probabilities.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax import devices, fields
from mtl_jax.algorithms import anil, mtl
from mtl_jax.config import base_config
from mtl_jax.data import episodes, store
from mtl_jax.evaluate import adapters, protocol
from mtl_jax.models import conv4
from mtl_jax.train import optimizer
from mtl_jax.train import step as steps

METHODS = ('anil', 'mtl', 'untrained')
NEW_HEAD = 'new head'  # logistic regression on frozen features
C = mtl.OPTIONS['test_C'].default
_BATCH = 500  # images of a forward pass
_AT_ONCE = 50  # tasks whose heads are fitted in one call


class Blocks(conv4.Conv4):
  """CNN-4 with another number of blocks.

  Every block halves the image; at most one pixel is left, on which further
  blocks are dense layers. All last maps are averaged: D = width at any depth.
  """

  pool: str = 'global'
  pool_edges: str = 'same'
  blocks: int = conv4.BLOCKS


class Cell(NamedTuple):
  """A network: how it is trained, and from which initial values."""

  method: str  # of METHODS
  depth: int  # blocks
  time: float  # lambda tau of ANIL; 0 for the others
  seed: int


class Data(NamedTuple):
  """The splits, and the unseen tasks that all networks see."""

  train: store.Store
  test: store.Store
  protocol: protocol.Protocol
  tasks: protocol.Tasks


def load(o):
  """Returns the Data of options; raises UserError if it is too small."""
  splits = {split: store.load(o.dataset, split) for split in ('train', 'test')}
  for split, images in (('train', o.train_shots + o.train_queries),
                        ('test', o.shots + o.queries)):
    episodes.check(splits[split], ways=o.ways, images_per_class=images,
                   field=split)
  asked = protocol.Protocol(
      key=episodes.stream_key(0, episodes.Stream.TEST),
      num_tasks=o.test_tasks, ways=o.ways, shots=o.shots,
      queries=o.queries, normalise_features=True, batch_size=_BATCH,
      tasks_at_once=_AT_ONCE)
  return Data(**splits, protocol=asked, tasks=protocol.tasks(
      asked, protocol.draw(asked, splits['test'].offsets)))


def make(o, data, depth):
  """Returns Cell -> {how: probabilities [tasks, Q, N]} for one depth.

  How is 'own' (ANIL's inner steps on the support, with the rate and number of
  those in training) or NEW_HEAD. What the cells share is compiled once.

  Args:
    o: options of closeness.py.
    data: Data.
    depth: number of blocks.
  """
  backbone = Blocks(width=o.width, blocks=depth)
  algorithms = {
      'anil': _anil(backbone, o),
      'mtl': mtl.build(backbone, data.train.num_classes, o.ways, **{
          **fields.defaults(mtl.OPTIONS), 'head_init': 'shared',
          'normalise_train_features': False})}
  algorithms['untrained'] = algorithms['mtl']
  training = functools.cache(
      lambda method: _make_training(o, data, algorithms[method]))
  heads = adapters.new_heads(algorithms['mtl'], data.test, data.protocol,
                             {NEW_HEAD: ('logistic', {'C': C})})
  own = adapters.own(algorithms['anil'], data.test, 'own', 1)

  def run(cell):
    begin, train = training(cell.method)
    state = begin(cell)
    if cell.method != 'untrained':
      state = train(state, cell.seed)
    variables = state.variables
    ways_to_adapt = [heads, *[own] * (cell.method == 'anil')]
    return dict(pair for adapter in ways_to_adapt
                for pair in _probabilities(adapter, variables, data.tasks))

  return run


def _anil(backbone, o):
  """Returns ANIL whose inner rate is variables['rate'], which is not trained.

  So one compiled step serves all rates.
  """
  method = anil.build(backbone, 0, o.ways, **{
      **fields.defaults(anil.OPTIONS), 'inner_steps': o.inner_steps,
      'test_steps': o.inner_steps, 'batch_norm': 'running'})
  rated = lambda variables: {
      **variables, 'params': {**variables['params'],
                              'rate': variables['rate']}}
  return method._replace(
      loss=lambda variables, *rest: method.loss(rated(variables), *rest),
      adapt=lambda variables, *rest: method.adapt(rated(variables), *rest),
      from_features=None)


def _make_training(o, data, algorithm):
  """Returns (Cell -> first state, (state, seed) -> trained state)."""
  config = base_config()
  config.train.update(ways=o.ways, shots=o.train_shots,
                      queries=o.train_queries)
  config.optimizer.update(
      name='adam', learning_rate=o.rate, schedule='cosine', decay_epochs=1)
  shape = data.train.images.shape[1:]
  draw = functools.partial(steps.draw_episode, train=config.train,
                           augmentation=config.augment, image_shape=shape)
  chain = optimizer.build(config.optimizer)
  mesh = devices.mesh(1, o.meta_batch)
  compiled = devices.compile(steps.make_step(
      algorithm, chain, optimizer.schedule(config.optimizer, o.steps),
      _of_fixed_tasks(draw, o.fixed_tasks), o.meta_batch), mesh)
  init = jax.jit(lambda key: steps.init_state(
      algorithm, chain, key, jnp.zeros((2, *shape))))
  arrays = functools.cache(lambda: compiled.share(store.arrays(data.train)))

  def begin(cell):
    state = init(episodes.stream_key(cell.seed, episodes.Stream.INIT))
    return state.replace(variables={
        **state.variables, 'rate': jnp.float32(cell.time / o.inner_steps)})

  def train(state, seed):
    state, key = compiled.put((
        state, episodes.stream_key(seed, episodes.Stream.TRAIN)))
    for _ in range(o.steps):
      state, metrics = compiled.step(state, arrays(), key, None)
      jax.block_until_ready(metrics)
    return compiled.get(state)

  return begin, train


def _of_fixed_tasks(draw, count):
  """Returns `draw`, or one that draws among `count` fixed tasks."""
  if not count:
    return draw

  def one_of_few(arrays, pixels, task_key):
    number = jax.random.randint(task_key, (), 0, count)
    return draw(arrays, pixels, jax.random.fold_in(jax.random.key(0), number))

  return one_of_few


def _probabilities(adapter, variables, tasks):
  """Yields the pairs (how, probabilities [tasks, Q, N]) of an Adapter."""
  count = len(tasks.numbers)
  chunks = list(protocol.chunks(count, adapter.at_once))
  answers = list(adapter.answers(
      variables, [protocol.some(tasks, rows) for rows, _ in chunks]))
  for how in answers[0]:
    logits: Any = np.concatenate([
        np.asarray(answer[how].logits)[:size]
        for answer, (_, size) in zip(answers, chunks, strict=True)])
    yield how, np.asarray(jax.nn.softmax(jnp.asarray(logits)))
