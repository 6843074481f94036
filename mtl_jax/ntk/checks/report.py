"""All checks of the theory on one page: `python -m mtl_jax.ntk report`."""

import base64
import html
import importlib
import json
import time
from typing import NamedTuple

import tqdm

from mtl_jax import files
from mtl_jax.data import store
from mtl_jax.errors import UserError, check_choice
from mtl_jax.ntk.checks.tasks import RANDOM

CHECKS = ('bound', 'finite_width', 'equivalence')
_IMAGE_DRAWS = 10
_STYLE = (
    'body{font:15px/1.45 sans-serif;max-width:1100px;margin:2em auto;padding:'
    '0 1em}pre{background:#f4f4f4;padding:.8em;white-space:pre-wrap}img{max-'
    'width:100%}table{border-collapse:collapse;font-size:13px}td,th{border:1px'
    ' solid #ccc;padding:.15em .6em;text-align:right}figure{margin:1em 0}'
    'figcaption{color:#555}')


class Options(NamedTuple):
  """What is on the page.

  Fields:
    checks: which of bound,finite_width,equivalence
    datasets: image data sets of the bound; what is not there is left out
    draws: draws of random tasks for the bound, 0 for its default
  """

  checks: tuple[str, ...] = CHECKS
  datasets: tuple[str, ...] = ('mini_imagenet', 'omniglot')
  draws: int = 0


class Part(NamedTuple):
  """One section of the page."""

  title: str
  module: str
  folder: str
  change: dict  # options that are not the module's defaults


def run(options, folder):
  """Runs all checks in sub-folders of `folder` and writes report.html.

  A check that is not finished goes on from its sub-folder. A data set that is
  not there is left out, and the page says so.

  Returns:
    {title: summary}, also in report.json.

  Raises:
    UserError: an unknown check, or one that cannot be run.
  """
  for name in options.checks:
    check_choice('--checks', name, CHECKS)
  started = time.monotonic()
  files.make(folder)
  sections, found = [], {}
  for part in tqdm.tqdm(parts(options), 'report', unit='part'):
    missing = _missing(part)
    if missing:
      found[part.title] = f'left out: {missing}'
      sections.append(_section(part.title, found[part.title], [], None))
    else:
      tqdm.tqdm.write(part.title)
      sections.append(_run(part, folder / part.folder))
      found[part.title] = sections[-1].summary
    page = _page(sections, time.monotonic() - started)
    files.write(folder / 'report.html', page)
  files.write(folder / 'report.json', json.dumps(found, indent=1))
  return found


def summary(result):
  """Returns the verdicts, one a part."""
  return '\n'.join(f'{title}: {_verdict(text)}'
                   for title, text in result.items())


def parts(options):
  """Returns the Parts of a page."""
  draws = {'draws': options.draws} if options.draws else {}
  images = {'draws': min(options.draws or _IMAGE_DRAWS, _IMAGE_DRAWS)}
  every = [
      Part('The bound, random regression tasks', 'bound', 'bound_random',
           draws),
      *(Part(f'The bound, images of {name}', 'bound',
             f'bound_{name.replace("/", "_")}', {'dataset': name, **images})
        for name in options.datasets),
      Part('Control: heads of MTL drawn apart', 'bound',
           'bound_independent_heads',
           {'control': 'independent_heads', **draws}),
      Part('Control: MTL trained on query and support', 'bound', 'bound_union',
           {'control': 'union', **draws}),
      Part('Networks of finite width', 'finite_width', 'finite_width', {}),
      Part('Equivalence of objectives', 'equivalence', 'equivalence', {})]
  return [part for part in every if part.module in options.checks]


class _Section(NamedTuple):
  title: str
  summary: str
  body: str  # HTML


def _missing(part):
  """Returns why a part's data set cannot be had, '' where it can."""
  name = part.change.get('dataset', RANDOM)
  if name == RANDOM:
    return ''
  try:
    store.load(name, 'train')
  except UserError as error:
    return str(error)
  return ''


def _run(part, folder):
  module = importlib.import_module(f'mtl_jax.ntk.checks.{part.module}')
  result = module.run(module.Options(**part.change), folder)
  pictures = [(caption, (folder / name).read_bytes())
              for name, caption in module.figures(result, folder)]
  table = module.table(result) if hasattr(module, 'table') else None
  return _section(part.title, module.summary(result), pictures, table)


def _section(title, text, pictures, table):
  body = [f'<h2 id="{_anchor(title)}">{html.escape(title)}</h2>',
          f'<pre>{html.escape(text)}</pre>']
  for caption, png in pictures:
    data = base64.b64encode(png).decode()
    body.append(f'<figure><img alt="" src="data:image/png;base64,{data}">'
                f'<figcaption>{html.escape(caption)}</figcaption></figure>')
  if table:
    header, rows = table
    line = lambda cells, tag: '<tr>' + ''.join(
        f'<{tag}>{html.escape(str(c))}</{tag}>' for c in cells) + '</tr>'
    body.append('<details><summary>All numbers</summary><table>'
                + line(header, 'th') + ''.join(line(r, 'td') for r in rows)
                + '</table></details>')
  return _Section(title, text, '\n'.join(body))


def _page(sections, seconds):
  rows = ''.join(
      f'<li><a href="#{_anchor(s.title)}">{html.escape(s.title)}</a>: '
      f'{html.escape(_verdict(s.summary))}</li>' for s in sections)
  bodies = '\n'.join(s.body for s in sections)
  return (
      '<!doctype html><html lang="en"><meta charset="utf-8"><title>Multi-task '
      f'and meta-learning: the theory, checked</title><style>{_STYLE}</style>'
      '<h1>Multi-task and meta-learning: the theory, checked</h1><p>Derived in '
      f'docs/theory.md; computed in {seconds / 60:.1f} minutes by <code>python '
      f'-m mtl_jax.ntk report</code>.</p><ul>{rows}</ul>{bodies}</html>')


def _verdict(text):
  """Returns the line of a summary that has the verdict, else the first."""
  lines = text.splitlines()
  return next((one for one in lines if 'verdict' in one.lower()), lines[0])


def _anchor(title):
  return ''.join(c if c.isalnum() else '-' for c in title.lower())
