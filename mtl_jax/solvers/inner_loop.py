"""The inner loop: descend a task's loss from the shared initial values.

Every method that iterates within a task is this function with other choices:
what `start` holds (the last layer: ANIL; all layers: MAML, iMAML,
Meta-MinibatchProx), how it is kept near the start (few steps; or `l2`), and
which gradient reaches the start (through the steps; first order; none, where
the method computes its own).
"""

import jax
import jax.numpy as jnp
import optax


def descend(loss, start, optimizer, *, steps, l2=0., first_order=False,
            remat=False, unroll=True):
  """Takes `steps` steps on loss + l2 / 2 |params - start|^2.

  Differentiable in whatever `loss`, `start` and `optimizer` close over.

  Args:
    loss: (params, i) -> (loss [], anything), i the number of the step.
    start: tree of arrays, the parameters that adapt.
    optimizer: optax transformation, such as that of `rate`; its state starts
      anew.
    steps: number of steps, 0 or more.
    l2: number or array [].
    first_order: whether gradients count as constants: the derivative of the
      result with respect to `start` is then the identity (Finn et al., 2017,
      section 5.2), and no second derivative of the loss is taken.
    remat: whether the outer derivative computes a step again instead of
      keeping its intermediate values: it needs the memory of one step and
      about a third more time.
    unroll: whether steps are unrolled. A loop compiles faster; around
      convolutions on a CPU it runs several times as long.

  Returns:
    (end, the second results of `loss` at all steps, stacked).
  """
  def step(carry, i):
    params, state = carry
    grads, extra = jax.grad(loss, has_aux=True)(params, i)
    if first_order:
      grads = jax.lax.stop_gradient(grads)
    grads = jax.tree.map(lambda g, p, s: g + l2 * (p - s), grads, params,
                         start)
    updates, state = optimizer.update(grads, state, params)
    return (optax.apply_updates(params, updates), state), extra

  (end, _), extras = loop(
      jax.checkpoint(step) if remat else step,
      (start, optimizer.init(start)), jnp.arange(steps), unroll)
  return end, extras


def loop(step, carry, xs, unroll):
  """Does what jax.lax.scan does, without a loop where `unroll`.

  scan's own unroll=length leaves a loop of one iteration, and XLA's CPU
  compiler runs convolutions within any loop on one thread and by a slower
  kernel.
  """
  if not unroll or not len(jax.tree.leaves(xs)[0]):
    return jax.lax.scan(step, carry, xs)
  outs = []
  for i in range(len(jax.tree.leaves(xs)[0])):
    carry, out = step(carry, jax.tree.map(lambda x, i=i: x[i], xs))
    outs.append(out)
  return carry, jax.tree.map(lambda *steps: jnp.stack(steps), *outs)


def rate(value):
  """Returns plain descent as an optax transformation.

  Args:
    value: a rate: number or array [], a tree like the parameters, or an array
      [steps], a rate for each step. Differentiable.
  """
  if jax.tree.structure(value).num_leaves > 1 or isinstance(value, dict):
    return optax.stateless(lambda grads, _: jax.tree.map(
        lambda r, g: -r * g, value, grads))
  value = jnp.asarray(value)
  return optax.sgd((lambda i: value[i]) if value.ndim else value)
