"""Adapt every layer to a task, from a head of class centroids.

Dhillon et al., "A Baseline for Few-Shot Image Classification" (ICLR 2020),
without its transductive part, as MTL's public code has it (`tune-all`): a
linear head on unit-length features starts from the centroids, and Adam on the
cross-entropy of the support moves head and backbone together. BatchNorm reads
its running statistics and keeps them.
"""

import jax
import jax.numpy as jnp
import ml_collections
import optax

from mtl_jax.models import layers

NAME = 'tune_all'  # in config.eval.heads


def options():
  """Returns the fields of config.tune_all with their defaults."""
  c = ml_collections.ConfigDict()
  c.steps = 10  # defaults of MTL's public code
  c.learning_rate = 1e-3
  # Tasks adapted together: each has a copy of the backbone and of Adam's
  # moments, so memory grows with it; the result does not.
  c.tasks_at_once = 1
  return c


def make(algorithm, ways, *, steps, learning_rate):
  """Returns (variables, support_x, support_y, query_x) -> logits.

  Args:
    algorithm: whose `features` are tuned.
    ways: N.
    steps: of Adam.
    learning_rate: of Adam.

  The function takes a chunk of tasks, support_x [t, S, h, w, c], support_y
  [S], query_x [t, Q, h, w, c], and returns [t, Q, N].
  """
  adam = optax.adam(learning_rate)

  def features(variables, params, images):
    return layers.unit_norm(algorithm.features(
        {**variables, 'params': params}, images))

  def start(variables, support_x, support_y):
    found = features(variables, variables['params'], support_x)
    members = jax.nn.one_hot(support_y, ways).T
    centroids = members @ found / jnp.sum(members, 1, keepdims=True)
    tuned = variables['params'], (centroids.T, jnp.zeros(ways))
    return tuned, adam.init(tuned)

  def logits(variables, tuned, images):
    params, (weight, bias) = tuned
    return features(variables, params, images) @ weight + bias

  def step(variables, carry, support_x, support_y):
    tuned, moments = carry
    loss = lambda tuned: jnp.mean(
        optax.softmax_cross_entropy_with_integer_labels(
            logits(variables, tuned, support_x), support_y))
    updates, moments = adam.update(jax.grad(loss)(tuned), moments)
    return optax.apply_updates(tuned, updates), moments

  of_tasks = lambda function, axes: jax.jit(jax.vmap(function, axes))
  starts = of_tasks(start, (None, 0, None))
  steps_of_tasks = of_tasks(step, (None, 0, 0, None))
  logits_of_tasks = of_tasks(logits, (None, 0, 0))

  def run(variables, support_x, support_y, query_x):
    # Steps are driven from here: a loop around convolutions is slow on a
    # CPU, and on an accelerator a call costs little beside a step.
    carry = starts(variables, support_x, support_y)
    for _ in range(steps):
      carry = steps_of_tasks(variables, carry, support_x, support_y)
    return logits_of_tasks(variables, carry[0], query_x)

  return run
