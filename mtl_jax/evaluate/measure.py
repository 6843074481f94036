"""Meta-test: draw unseen tasks, adapt to them, count the hits."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax import processes, progress
from mtl_jax.errors import UserError
from mtl_jax.evaluate import adapters
from mtl_jax.evaluate import protocol as drawing


class Measured(NamedTuple):
  """Of each task: the accuracy, and how well it was solved.

  accuracies: float64 [T].
  convergence: {'residual': [T], 'not_converged': bool [T]} of
    heads.convergence, or {} where nothing is solved.
  """

  accuracies: Any
  convergence: dict[str, Any]


def meta_test(algorithm, variables, store, protocol, scored):
  """Measures the accuracy of adaptation to unseen tasks.

  Args:
    algorithm: whose features or adaptation are measured.
    variables: of the algorithm; not changed.
    store: the split that the tasks are drawn from.
    protocol: Protocol.
    scored: label -> (head name, 'own' or 'tune_all'; its options).

  Returns:
    Label -> accuracy of each task, float64 [T].

  Raises:
    UserError: logits are not finite, and so no answer.
  """
  measured, = make_meta_test(algorithm, store, (protocol,), scored)(variables)
  return {label: m.accuracies for label, m in measured.items()}


def make_meta_test(algorithm, store, protocols, scored, image_ids=None):
  """Returns (variables, which=None) -> [{label: Measured}, ..].

  Compiled once; the protocols that are measured share the features. `which`
  are their numbers among `protocols`; None: all.

  Args:
    algorithm, store, scored: as in `meta_test`.
    protocols: Protocols that differ in their tasks only.
    image_ids: for each protocol the images int [T, N, K + Q] of its tasks;
      None: they are drawn.
  """
  if image_ids is None:
    image_ids = [drawing.draw(p, store.offsets) for p in protocols]
  all_tasks = [drawing.tasks(p, ids)
               for p, ids in zip(protocols, image_ids, strict=True)]
  all_adapters = adapters.make(algorithm, store, protocols[0], scored,
                               fewest=min(map(len, image_ids)))

  def run(variables, which=None):
    measured = all_tasks if which is None else [all_tasks[i] for i in which]
    results = [{label: [] for label in scored} for _ in measured]
    for adapter in all_adapters:
      parts = [(result, drawing.some(tasks, rows), count)
               for result, tasks in zip(results, measured, strict=True)
               for rows, count in drawing.chunks(len(tasks.numbers),
                                                 adapter.at_once)]
      answers = adapter.answers(variables, [tasks for _, tasks, _ in parts])
      own, scores = processes.mine(parts), []
      # All in one form, as protocols may have different numbers of tasks.
      fill = lambda x, size=adapter.at_once: x if processes.count() == 1 else (
          jnp.pad(x, (0, size - len(x)), mode='edge'))
      with progress.bar(sum(count for *_, count in own), 'adapting',
                        unit='task', show=protocols[0].progress) as bar:
        for (_, tasks, count), by_label in zip(own, answers, strict=True):
          scores.append(jax.tree.map(fill, {
              label: Measured(_accuracies(logits, tasks.query_y), convergence)
              for label, (logits, convergence) in by_label.items()}))
          bar.update(count)
      for (result, _, count), by_label in zip(
          parts, processes.joined(scores, len(parts)), strict=True):
        for label, measured_part in by_label.items():
          result[label].append((measured_part, count))
    return [{label: _joined(label, parts) for label, parts in result.items()}
            for result in results]

  return run


@jax.jit
def _accuracies(logits, labels):
  """Returns the accuracy of each task, [t], from logits [t, Q, N].

  NaN where a logit is not finite: argmax would take the first class, and chance
  would look like a score.
  """
  accuracies = jnp.mean(jnp.argmax(logits, -1) == labels, -1)
  finite = jnp.all(jnp.isfinite(logits), (-2, -1))
  return jnp.where(finite, accuracies, jnp.nan)


def _joined(label, parts):
  """Joins [(Measured of some tasks, how many count), ..] into one.

  Raises:
    UserError: an accuracy is NaN.
  """
  counted = [jax.tree.map(lambda x, n=count: np.asarray(x)[:n], part)
             for part, count in parts]
  accuracies, convergence = jax.tree.map(
      lambda *parts: np.concatenate(parts, dtype=np.float64), *counted)
  bad = int(np.isnan(accuracies).sum())
  if bad:
    raise UserError(
        f'the logits of {label!r} are not finite in {bad} of '
        f'{len(accuracies)} tasks, so they are not scored: choose other '
        'options of this head or method, or a lower '
        'config.optimizer.learning_rate')
  return Measured(accuracies, convergence)


def remedy(algorithm, head):
  """Returns which fields to change where a head has not converged.

  Args:
    algorithm: that was measured.
    head: a name of config.eval.heads.
  """
  if head == adapters.OWN:
    return algorithm.remedy
  return f'choose other options in config.heads.{head}, or another head'
