"""iMAML (Rajeswaran, Finn, Kakade & Levine, NeurIPS 2019).

    min over theta of  mean_t  L(phi_t; query_t),
    phi_t = argmin over phi of  L(phi; support_t) + lambda/2 |phi - theta|^2

All layers adapt, regularised by l2 to theta. At the optimum the gradient needs
no path through the steps:

    d L(phi_t; query_t) / d theta = (I + H / lambda)^-1  dL(phi_t; query_t)/dphi

with H the Hessian of the support's loss at phi_t, by conjugate gradients on
Hessian products (the paper's equations 6 and 8). Away from an optimum H is
indefinite and I + H / lambda may be; the metrics report how often a direction
of non-positive curvature ended the iteration (`negative_curvature`), and the
residual |g - A x| / |g|.
"""

import jax
import jax.numpy as jnp
import ml_collections
from jax.flatten_util import ravel_pytree

from mtl_jax.algorithms import base, maml, network
from mtl_jax.errors import UserError, check_choice
from mtl_jax.solvers import conjugate_gradients, inner_loop


def options():
  """Returns iMAML's own fields with their defaults."""
  c = ml_collections.ConfigDict()
  c.l2 = 2.  # lambda
  c.inner_steps = 16  # of gradient descent, in training
  c.inner_rate = 0.1  # of the mean cross-entropy
  c.test_steps = 16
  c.test_l2 = 0.  # lambda at test time; the public code takes none
  c.cg_steps = 5
  # A v = (1 + damping) v + H v / (lambda + curvature_damping). Zero is the
  # paper's. Damping bends A towards the first-order gradient.
  c.damping = 0.
  c.curvature_damping = 0.
  # As imaml_dev: steps without the l2 term, then one step on it alone; its
  # damping is set by damping=1., curvature_damping=10.
  c.public_code = False
  c.batch_norm = 'transductive'  # always batch statistics, as published
  c.unroll = True  # compile inner steps one behind the other
  return c


SMALL = base.SMALL_ALL_LAYERS | {
    'method.inner_steps': 3, 'method.test_steps': 5,
    'method.inner_rate': 0.4, 'method.l2': 0.5, 'optimizer.epsilon': 1e-8,
    # Without damping nearly every task ends at negative curvature.
    # With it three steps of conjugate gradients leave a residual near 1e-2.
    'method.damping': 1., 'method.curvature_damping': 10.,
    'method.cg_steps': 3, 'train.epoch_tasks': 400,
}


def published(benchmark, shots):
  """Returns the published settings, those of Omniglot for all benchmarks."""
  overrides = {
      'train.ways': 5, 'train.shots': shots, 'train.queries': shots,
      'train.meta_batch': 32, 'train.epoch_tasks': 32000,
      'train.max_epochs': 20, 'train.stop_patience': 0,
      'optimizer.name': 'adam', 'optimizer.learning_rate': 1e-3,
      'optimizer.epsilon': 1e-3, 'optimizer.schedule': 'constant',
  } | base.OWN_TEST
  return base.settings(
      benchmark, overrides, SMALL, 'aravindr93/imaml_dev README (Omniglot), '
      'lambda 2 and 5 steps of conjugate gradients', benchmark != 'omniglot')


def build(backbone, num_classes, ways, *, l2, inner_steps, inner_rate,
          test_steps, test_l2, cg_steps, damping, curvature_damping,
          public_code, batch_norm, unroll):
  """Returns iMAML over a backbone; see `options` for the keywords."""
  del num_classes
  check_choice('config.method.batch_norm', batch_norm, maml.BATCH_NORM)
  maml.check_inner(inner_steps, test_steps, inner_rate)
  if not l2 > 0:
    raise UserError(f'config.method.l2 is {l2}: must be above 0')
  for name, value in (('test_l2', test_l2), ('cg_steps', cg_steps),
                      ('damping', damping),
                      ('curvature_damping', curvature_damping)):
    if value < 0:
      raise UserError(f'config.method.{name} is {value}: must be at least 0')
  rate = inner_loop.rate(inner_rate)

  def inner(variables, loss, steps, l2):
    """Returns (phi, statistics at theta)."""
    theta = variables['params']
    phi, statistics = network.descend(
        loss, theta, rate, steps=steps, l2=0. if public_code else l2,
        first_order=True, unroll=unroll)
    if public_code:
      phi = jax.tree.map(lambda p, t: p - inner_rate * l2 * (p - t), phi,
                         theta)
    return phi, statistics

  def solve(loss, phi, g):
    """Solves A x = g at phi; returns (x, Solution)."""
    flat, unravel = ravel_pytree(phi)
    slope = jax.grad(lambda flat: loss(unravel(flat), inner_steps)[0])

    def product(v):
      # Reverse over reverse: the convolution has no forward mode.
      hessian_v = jax.grad(lambda flat: jnp.vdot(slope(flat), v))(flat)
      return (1. + damping) * v + hessian_v / (l2 + curvature_damping)

    found = conjugate_gradients.solve(product, ravel_pytree(g)[0],
                                      steps=cg_steps, unroll=unroll)
    return unravel(found.x), found

  def task_loss(variables, key, episode, tasks_seen):
    mode = network.Mode(True, key, tasks_seen)
    fixed = jax.lax.stop_gradient(variables)
    loss = network.support_loss(backbone, fixed, episode.support_x,
                                episode.support_y, batch_norm, mode)
    phi, statistics = inner(fixed, loss, inner_steps, l2)

    query_loss = lambda phi: network.query_loss(
        backbone, phi, fixed['batch_stats'], episode, batch_norm,
        mode.at(inner_steps))
    (value, scored), g = jax.value_and_grad(query_loss, has_aux=True)(phi)
    x, found = solve(loss, phi, g)
    # The value of the query's loss with the implicit gradient.
    zero = jax.tree.map(lambda p, same: p - same, variables['params'],
                        fixed['params'])
    linear = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, x, zero)))
    return (value + linear,
            network.aux(statistics, *scored, residual=found.residual,
                        negative_curvature=found.negative))

  def adapt(variables, key, support_x, support_y, num_ways):
    del key, num_ways  # nothing random; the head has as many as in training
    loss = network.support_loss(backbone, variables, support_x, support_y,
                                batch_norm, network.TEST)
    phi, _ = inner(variables, loss, test_steps, test_l2)
    return network.Adapted(phi, variables['batch_stats'], support_x)

  return base.Algorithm(
      network.init_with_head(backbone, ways), task_loss,
      network.features_function(backbone), adapt,
      network.predict_adapted(backbone, batch_norm))
