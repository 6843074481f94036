"""All checks of the theory on one page: `python -m mtl_jax.ntk report`."""

import time
from typing import NamedTuple

import tqdm

from mtl_jax import files
from mtl_jax.data import store
from mtl_jax.errors import UserError
from mtl_jax.fields import NOT_NEGATIVE, Field
from mtl_jax.ntk.checks import CHECKS, check, closeness
from mtl_jax.ntk.checks.tasks import RANDOM
from mtl_jax.report import page

TITLE = 'Multi-task and meta-learning: the theory, checked'
_IMAGE_DRAWS = 10

OPTIONS = {
    'checks': Field(tuple(CHECKS), 'which of ' + ','.join(CHECKS),
                    tuple(CHECKS)),
    'datasets': Field(
        ('mini_imagenet', 'omniglot'),
        'image data sets for the bound; those that are not built are left '
        'out'),
    'draws': Field(0, 'draws of random tasks for the bound; 0 keeps its '
                   'default', NOT_NEGATIVE),
}


class Part(NamedTuple):
  """One section of the page."""

  title: str
  check: str  # a key of CHECKS
  folder: str
  options: dict  # those that differ from the check's defaults


def run(options, folder):
  """Runs all checks in sub-folders of `folder` and writes report.html.

  A check that was stopped resumes from its sub-folder. A data set that is not
  built is left out, and the page says so. The page is written anew after
  each part.

  Args:
    options: dict of OPTIONS; those left out keep their defaults.
    folder: epath.Path, made if need be.

  Returns:
    {title: {'holds', 'verdict', 'summary'}}, also in report.json; 'holds' is
    None for a part that is left out or only observes.

  Raises:
    UserError: an option is wrong, or a check cannot be run.
  """
  o = check.settle(OPTIONS, options)
  started = time.monotonic()
  files.make(folder)
  sections, results = [], {}
  for part in tqdm.tqdm(parts(o), 'report', unit='part'):
    tqdm.tqdm.write(part.title)
    section, holds = _run(part, folder / part.folder)
    sections.append(section)
    results[part.title] = {
        'holds': holds, 'verdict': section.line, 'summary': section.text}
    minutes = (time.monotonic() - started) / 60
    files.write(folder / 'report.html', page.page(
        TITLE, f'Derived in docs/theory.md; computed in {minutes:.1f} minutes '
        'by python -m mtl_jax.ntk report.', sections))
  files.write(folder / 'report.json', check.text(results, indent=1))
  return results


def summary(results):
  """Returns the verdicts, one line per part."""
  return '\n'.join(f'{title}: {part["verdict"]}'
                   for title, part in results.items())


def parts(o):
  """Returns the Parts of a page."""
  draws = {'draws': o.draws} if o.draws else {}
  images = {'draws': min(o.draws or _IMAGE_DRAWS, _IMAGE_DRAWS)}
  every = [
      Part('The bound, random regression tasks', 'bound', 'bound_random',
           draws),
      *(Part(f'The bound, images of {name}', 'bound',
             f'bound_{name.replace("/", "_")}', {'dataset': name, **images})
        for name in o.datasets),
      Part('Control: heads of MTL drawn apart', 'bound',
           'bound_independent_heads',
           {'control': 'independent_heads', **draws}),
      Part('Control: MTL trained on query and support', 'bound', 'bound_union',
           {'control': 'union', **draws}),
      Part('Networks of finite width', 'finite_width', 'finite_width', {}),
      Part('Equivalence of objectives', 'equivalence', 'equivalence', {}),
      Part('Closeness on real networks, quick size', 'closeness', 'closeness',
           closeness.QUICK)]
  return [part for part in every if part.check in o.checks]


def _run(part, folder):
  """Returns the Section of a part, and whether its check holds."""
  missing = _missing(part)
  if missing:
    line = f'left out: {missing}'
    return page.Section(part.title, line, line), None
  this = CHECKS[part.check]
  result = this.run(part.options, folder)
  pictures = [(caption, (folder / name).read_bytes())
              for name, caption in this.figures(result, folder)]
  return page.Section(part.title, this.verdict(result), this.summary(result),
                      pictures, this.table(result)), result['holds']


def _missing(part):
  """Returns why a part's data set cannot be loaded; '' where it can."""
  name = part.options.get('dataset', RANDOM)
  if name == RANDOM:
    return ''
  try:
    store.load(name, 'train')
  except UserError as error:
    return str(error)
  return ''
