"""Adapt every layer to a task, from a head of class centroids.

Dhillon et al., "A Baseline for Few-Shot Image Classification" (ICLR 2020),
without its transductive part, as MTL's public code has it (`tune-all`): a
linear head on unit-length features starts from the centroids, and Adam on the
cross-entropy of the support moves head and backbone together. BatchNorm reads
its running statistics and keeps them.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from mtl_jax.fields import COUNT, NOT_NEGATIVE, POSITIVE, Field
from mtl_jax.models import layers

NAME = 'tune_all'  # in config.eval.heads

# The defaults of steps and rate are those of MTL's public code.
OPTIONS = {
    'steps': Field(10, "steps of Adam on a task's support", NOT_NEGATIVE,
                   free=True),
    'learning_rate': Field(1e-3, 'rate of Adam', POSITIVE, free=True),
    'tasks_at_once': Field(
        1, 'tasks adapted together; each has a copy of the backbone and of '
        "Adam's moments, so memory grows with it, and the result does not "
        'change', COUNT, free=True),
}


def make(algorithm, *, steps, learning_rate):
  """Returns (variables, support_x, support_y, query_x, ways) -> logits.

  Args:
    algorithm: whose `features` are tuned.
    steps: of Adam.
    learning_rate: of Adam.

  The function takes t tasks, support_x [t, S, h, w, c], support_y [S], query_x
  [t, Q, h, w, c], and N; it returns [t, Q, N].
  """
  adam = optax.adam(learning_rate)

  def features(variables, params, images):
    return layers.unit_norm(algorithm.features(
        {**variables, 'params': params}, images))

  def start(ways, variables, support_x, support_y):
    support = features(variables, variables['params'], support_x)
    members = jax.nn.one_hot(support_y, ways).T
    centroids = members @ support / jnp.sum(members, 1, keepdims=True)
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
  steps_of_tasks = of_tasks(step, (None, 0, 0, None))
  logits_of_tasks = of_tasks(logits, (None, 0, 0))

  @functools.partial(jax.jit, static_argnums=0)
  def starts(ways, *args):
    return jax.vmap(functools.partial(start, ways), (None, 0, None))(*args)

  def run(variables, support_x, support_y, query_x, ways):
    # Steps are driven from here: a loop around convolutions is slow on a
    # CPU, and on an accelerator a call costs little beside a step.
    carry = starts(ways, variables, support_x, support_y)
    for _ in range(steps):
      carry = steps_of_tasks(variables, carry, support_x, support_y)
    return logits_of_tasks(variables, carry[0], query_x)

  return run
