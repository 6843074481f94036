"""iMAML (Rajeswaran, Finn, Kakade & Levine, NeurIPS 2019).

    min over theta of  mean_t  L(phi_t; query_t),
    phi_t = argmin over phi of  L(phi; support_t) + lambda/2 |phi - theta|^2

All layers adapt, regularised by l2 to theta. At the optimum the gradient needs
no path through the steps:

    d L(phi_t; query_t) / d theta = (I + H / lambda)^-1  dL(phi_t; query_t)/dphi

with H the Hessian of the support's loss at phi_t, by conjugate gradients on
Hessian products (the paper's equations 6 and 8). Away from an optimum H is
indefinite and I + H / lambda may be; the metrics report how often a direction
of non-positive curvature ended the iteration (`negative_curvature`), the
residual |g - A x| / |g|, and how far phi_t is from the optimum
(`stationarity`).
"""

import jax
from jax.flatten_util import ravel_pytree

from mtl_jax import heads
from mtl_jax.algorithms import base, network
from mtl_jax.fields import COUNT, NOT_NEGATIVE, POSITIVE, Field
from mtl_jax.solvers import conjugate_gradients, inner_loop

ANY_WAYS = False  # the head has as many outputs as in training
check = base.need_queries
OPTIONS = {
    'l2': Field(2., 'lambda in training', POSITIVE),
    'inner_steps': Field(16, 'steps of gradient descent in training', COUNT),
    'inner_rate': Field(
        0.1, 'rate of the inner steps, on the mean cross-entropy', POSITIVE),
    'test_steps': Field(16, 'steps of gradient descent at test time', COUNT),
    'test_l2': Field(0., 'lambda at test time; the public code takes none',
                     NOT_NEGATIVE),
    'cg_steps': Field(5, 'most steps of conjugate gradients', COUNT),
    # Zero is the paper's. Damping bends A towards the first-order gradient.
    'damping': Field(0., 'a in A v = (1 + a) v + H v / (lambda + b)',
                     NOT_NEGATIVE),
    'curvature_damping': Field(0., 'b in A v = (1 + a) v + H v / (lambda + b)',
                               NOT_NEGATIVE),
    # The damping of imaml_dev is damping=1., curvature_damping=10.
    'public_code': Field(
        False, 'whether to do as imaml_dev: the steps leave the l2 term out, '
        'and one more step is taken on it alone'),
    # Always batch statistics, as published.
    'batch_norm': Field('transductive', 'BatchNorm statistics of a task',
                        network.BATCH_NORM_ALL_LAYERS),
    'unroll': Field(True, 'whether inner steps are unrolled at compilation'),
}


def _published(shots):
  """Returns the Recipe of the README's command, for K shots."""
  return base.published({
      'train.ways': 5, 'train.shots': shots, 'train.queries': shots,
      'train.meta_batch': 32, 'train.max_epochs': 20,
      'train.stop_patience': 0, 'train.turn_classes': True,
      'optimizer.name': 'adam', 'optimizer.learning_rate': 1e-3,
      'optimizer.epsilon': 1e-3, 'optimizer.schedule': 'constant',
      'method.l2': 2., 'method.inner_steps': 16, 'method.inner_rate': 0.1,
      'method.test_steps': 16, 'method.test_l2': 0., 'method.cg_steps': 5,
      'method.damping': 1., 'method.curvature_damping': 10.,
      'method.public_code': True, 'method.batch_norm': 'transductive',
      **base.OWN_TEST, **base.PLAIN,
      **base.protocol(test=(600, shots)),
      **base.network('four convolutions of stride 2', width=64,
                     pool='no pools, 256 features'),
  }, 'aravindr93/imaml_dev README (Omniglot)', {
      'train.epoch_tasks': (
          32_000, 'the source has no epochs: 20,000 steps or more'),
      **base.pooled('the source has strides and 256 features; no network here '
                    'has strides, and conv4 has 64'),
      **base.selection(shots, shots), **base.TURNS_ARE_CLASSES,
  }, notes=(base.BIASES,
            'Ink is 1 here; the source does not invert the images.',
            'Weights start as in models/layers.py; the source takes Glorot '
            'with gain 1.73, and biases from U(0, 0.05).',
            'Conjugate gradients stop before a direction of negative curvature '
            'and at a relative residual; those of the source at an absolute '
            'one.',
            base.UPRIGHT_TEST))


def _mini(shots):
  """Returns a Recipe of ours: nobody published settings of mini-ImageNet."""
  return _published(shots)._replace(ours=True)


# Of benchmarks/search.py. The trials on mini-ImageNet had MAML's inner rate
# there, 0.02. With it a whole training diverges after 200 steps. That may be
# because the gradient of iMAML does not see a step too long for the curvature.
_CHOSEN = {
    'glyphs': {'optimizer.learning_rate': 0.01},
    'omniglot': {'optimizer.learning_rate': 0.01},
    'mini_imagenet': {
        'optimizer.learning_rate': 1e-3, 'method.inner_rate': 0.01},
}
RECIPES = base.with_neighbours({
    ('omniglot', 5, 'published'): _published(5),
    ('omniglot', 1, 'published'): _published(1),
    ('mini_imagenet', 5, 'published'): _mini(5),
    ('mini_imagenet', 1, 'published'): _mini(1),
    **base.cpu_recipes(_published(5), base.ALL_LAYERS | {
        'method.inner_steps': 3, 'method.test_steps': 5,
        'method.inner_rate': 0.4, 'method.l2': 0.5, 'optimizer.epsilon': 1e-8,
        'method.public_code': False,
        # Without damping nearly every task ends at negative curvature.
        # With it three steps of conjugate gradients leave a residual near
        # 1e-2.
        'method.damping': 1., 'method.curvature_damping': 10.,
        'method.cg_steps': 3,
    }, {'small': {5: 125, 1: 480}, 'mini': {5: 190, 1: 620}}, _CHOSEN),
})


def build(backbone, num_classes, ways, *, l2, inner_steps, inner_rate,
          test_steps, test_l2, cg_steps, damping, curvature_damping,
          public_code, batch_norm, unroll):
  """Returns iMAML over a backbone; see OPTIONS for the keywords."""
  del num_classes
  body = network.Body(backbone, batch_norm)
  inner = _inner_loop(inner_rate, public_code, unroll)

  def task_loss(variables, key, episode, tasks_seen):
    mode = network.Mode(True, key, tasks_seen)
    fixed = jax.lax.stop_gradient(variables)
    loss = network.support_loss(body, fixed, episode.support_x,
                                episode.support_y, mode)
    phi, statistics = inner(fixed['params'], loss, inner_steps, l2)

    query_loss = lambda phi: network.query_loss(
        body, {**fixed, 'params': phi}, episode, mode.at(inner_steps))
    (value, scored), g = jax.value_and_grad(query_loss, has_aux=True)(phi)
    x, solution = _solve(
        lambda phi: loss(phi, inner_steps)[0], phi, g, identity=1. + damping,
        curvature=l2 + curvature_damping, steps=cg_steps, unroll=unroll)
    # The value of the query's loss with the implicit gradient.
    zero = jax.tree.map(lambda p, same: p - same, variables['params'],
                        fixed['params'])
    linear = sum(jax.tree.leaves(jax.tree.map(conjugate_gradients.dot, x,
                                              zero)))
    size = stationarity(loss, inner_steps, phi, fixed['params'], l2)
    return value + linear, network.aux(
        statistics, scored, residual=solution.residual,
        negative_curvature=solution.negative, stationarity=size,
        not_converged=heads.convergence(
            {'cg': solution.residual, 'inner': size})['not_converged'])

  def adapt(variables, key, support_x, support_y, num_ways,
            example_weights=None):
    del key, num_ways  # nothing random; the head's outputs are fixed
    loss = network.support_loss(body, variables, support_x, support_y,
                                network.TEST, example_weights=example_weights)
    phi, _ = inner(variables['params'], loss, test_steps, test_l2)
    convergence = None
    if test_l2:
      convergence = heads.convergence({'inner': stationarity(
          loss, test_steps, phi, variables['params'], test_l2)})
    return network.Adapted({**variables, 'params': phi}, support_x,
                           convergence)

  def stationarity(loss, i, phi, theta, l2):
    slope = jax.grad(lambda phi: loss(phi, i)[0])(phi)
    return network.stationarity(slope, network.penalty_slope(l2, phi, theta))

  return base.Algorithm(
      network.init_with_head(backbone, ways), task_loss,
      network.features_function(backbone), adapt,
      network.predict_adapted(body),
      network.adapted_convergence if test_l2 else None,
      'raise config.method.inner_steps (at test time test_steps), cg_steps, '
      'or l2')


def _inner_loop(inner_rate, public_code, unroll):
  """Returns (theta, loss, steps, l2) -> (phi, statistics at theta)."""
  rate = inner_loop.rate(inner_rate)

  def inner(theta, loss, steps, l2):
    phi, statistics = network.descend(
        loss, theta, rate, steps=steps, l2=0. if public_code else l2,
        first_order=True, unroll=unroll)
    if public_code:
      phi = jax.tree.map(lambda p, t: p - inner_rate * l2 * (p - t), phi,
                         theta)
    return phi, statistics

  return inner


def _solve(loss, phi, g, *, identity, curvature, steps, unroll):
  """Solves (identity I + H / curvature) x = g, H the Hessian of loss at phi.

  Returns:
    (x, Solution of conjugate gradients).
  """
  flat, unravel = ravel_pytree(phi)
  slope = jax.grad(lambda flat: loss(unravel(flat)))

  def product(v):
    # Reverse over reverse: the convolution has no forward mode.
    hessian_v = jax.grad(
        lambda flat: conjugate_gradients.dot(slope(flat), v))(flat)
    return identity * v + hessian_v / curvature

  solution = conjugate_gradients.solve(product, ravel_pytree(g)[0],
                                       steps=steps, unroll=unroll)
  return unravel(solution.x), solution
