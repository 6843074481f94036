"""Optimizers and learning-rate schedules.

The direction comes from optax without a rate. The schedule gives the rate of a
step; of all schedules only `plateau` reads how validation went. The step knows
the rate, so that the metrics can report it.
"""

import chex
import jax.numpy as jnp
import optax

OPTIMIZERS = ('radam', 'adam', 'sgd')
SCHEDULES = ('constant', 'step', 'cosine', 'linear', 'plateau')


@chex.dataclass(frozen=True)
class Plateau:
  """State of the host-driven schedule; every run counts, one schedule reads."""

  scale: chex.Array  # [] float32, multiplies the rate
  best: chex.Array  # [] float32, the score to beat
  epochs: chex.Array  # [] int32, epochs without gain


def init_plateau():
  """Returns the state before the first epoch."""
  return Plateau(scale=jnp.float32(1), best=jnp.float32(-jnp.inf),
                 epochs=jnp.int32(0))


def update_plateau(plateau, score, c):
  """Counts an epoch; `c` is config.optimizer.

  The rate falls on the epoch after `plateau_patience` ones without a gain of
  more than `plateau_threshold`, relative (torch's ReduceLROnPlateau with
  mode 'max', as MTL's public code uses it).
  """
  score = jnp.float32(score)
  # best + |best| t is above a negative best too, and best (1 + t) is not. The
  # product with the first best, -inf, would be NaN.
  gain = score > plateau.best + jnp.where(
      jnp.isfinite(plateau.best), jnp.abs(plateau.best), 0.
  ) * c.plateau_threshold
  epochs = jnp.where(gain, 0, plateau.epochs + 1)
  late = epochs > c.plateau_patience
  return Plateau(
      scale=jnp.where(late, plateau.scale * c.plateau_factor, plateau.scale),
      best=jnp.where(gain, score, plateau.best),
      epochs=jnp.where(late, 0, epochs).astype(jnp.int32))


def build(c):
  """Returns the optax transformation of config.optimizer, without a rate."""
  clip = optax.clip(c.clip) if c.clip else optax.identity()
  if c.name == 'sgd':
    # The decay goes through the momentum, as in torch and the papers.
    return optax.chain(clip, optax.add_decayed_weights(c.weight_decay),
                       optax.trace(decay=c.momentum, nesterov=c.nesterov))
  scale = {'adam': optax.scale_by_adam, 'radam': optax.scale_by_radam}[c.name]
  return optax.chain(clip, scale(b1=c.beta1, b2=c.beta2, eps=c.epsilon),
                     optax.add_decayed_weights(c.weight_decay))


def schedule(c, steps_per_epoch):
  """Returns (step, Plateau) -> rate of config.optimizer."""
  if c.schedule == 'plateau':
    return lambda step, plateau: c.learning_rate * plateau.scale
  by_step = _by_step(c, steps_per_epoch)
  return lambda step, plateau: by_step(step)


def _by_step(c, steps_per_epoch):
  """Returns step -> rate; boundaries and lengths are in epochs."""
  if c.schedule == 'step':
    boundaries = {}
    last = 1.
    for epoch, scale in zip(c.step_epochs, c.step_scales, strict=True):
      boundaries[epoch * steps_per_epoch] = scale / last
      last = scale
    return optax.piecewise_constant_schedule(c.learning_rate, boundaries)
  if c.schedule == 'linear':
    return optax.linear_schedule(c.learning_rate, 0.,
                                 c.decay_epochs * steps_per_epoch)
  if c.schedule == 'cosine':
    return optax.warmup_cosine_decay_schedule(
        0. if c.warmup_epochs else c.learning_rate, c.learning_rate,
        c.warmup_epochs * steps_per_epoch, c.decay_epochs * steps_per_epoch)
  return optax.constant_schedule(c.learning_rate)
