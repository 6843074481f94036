"""One page of texts, pictures and tables, as HTML and as Markdown.

The HTML needs no other file and no JavaScript, follows the colours that the
reader's system prefers, and is as narrow as its window: what is wider scrolls
within itself.
"""

import base64
import html
from typing import NamedTuple

from mtl_jax.report import formats

_STYLE = (
    ':root{color-scheme:light dark;--ink:#1b1b1b;--paper:#fff;--soft:#595959;'
    '--line:#c9c9c9;--tint:#f4f4f4;--link:#0b57a4}@media(prefers-color-scheme:'
    'dark){:root{--ink:#e6e6e6;--paper:#161616;--soft:#a9a9a9;--line:#484848;'
    '--tint:#232323;--link:#8ab8ff}}body{font:15px/1.45 system-ui,sans-serif;'
    'max-width:1100px;margin:2em auto;padding:0 1em;color:var(--ink);'
    'background:var(--paper);overflow-wrap:anywhere}a{color:var(--link)}h1,h2{'
    'line-height:1.2}h2{margin-top:2em}pre{background:var(--tint);padding:.8em;'
    'white-space:pre-wrap}.wide{overflow-x:auto;margin:1em 0}table{border-'
    'collapse:collapse;font-size:13px;overflow-wrap:normal}td,th{border:1px '
    'solid var(--line);padding:.2em .6em;text-align:right;vertical-align:top;'
    'white-space:nowrap}tr>:first-child{background:var(--paper);text-align:'
    'left}.wide>table tr>:first-child{position:sticky;left:0;white-space:'
    'normal;min-width:8em;max-width:40vw;overflow-wrap:anywhere}th{background:'
    'var(--tint)}tr>th:first-child{background:var(--tint)}.t{text-align:left}'
    'small{display:block;color:var(--soft);font-size:12px;font-weight:normal}'
    '.facts{width:100%}.facts td{white-space:normal;text-align:left;overflow-'
    'wrap:anywhere}.facts td:first-child{white-space:nowrap;width:1%}.pictures'
    '{display:grid;gap:1em;grid-template-columns:repeat(auto-fill,minmax(min('
    '100%,21em),1fr))}figure{margin:1em 0}.pictures>figure{margin:0}img{'
    'max-width:100%;box-sizing:border-box;padding:6px;background:#fff;border-'
    'radius:4px}figcaption,.note{color:'
    'var(--soft);font-size:13px}summary{cursor:pointer;padding:.3em 0}details '
    'details{margin-left:1em}')


class Heading(NamedTuple):
  """A heading within a section."""

  text: str


class Table(NamedTuple):
  """A table. A cell is a text, or a tuple of it and of smaller lines below.

  texts: of how many columns the texts begin at the left.
  note: a paragraph below.
  """

  header: tuple
  rows: list
  texts: int = 1
  note: str = ''


class Facts(NamedTuple):
  """Pairs of a name and a text, which may be long."""

  pairs: list


class Pictures(NamedTuple):
  """Pictures side by side: [(file name, caption, bytes of a PNG or SVG)]."""

  files: list


class Folded(NamedTuple):
  """Blocks that are shown on a click."""

  title: str
  blocks: list


class Section(NamedTuple):
  """A section of a page; all texts are shown as they are.

  title: its heading; no two sections of a page have the same.
  line: shown beside the title in the list of contents.
  text: lines in a fixed width, '' for none.
  pictures: [(caption, bytes of a PNG or SVG)], in the HTML alone.
  table: (header, rows), shown on a click, in the HTML alone; None for none.
  blocks: what follows: paragraphs (a text each), Heading, Table, Facts,
    Pictures and Folded.
  """

  title: str
  line: str
  text: str = ''
  pictures: list | tuple = ()
  table: tuple | None = None
  blocks: list | tuple = ()


def page(title, introduction, sections):
  """Returns the HTML of a page.

  Args:
    title: of the page.
    introduction: a paragraph below the title.
    sections: list of Section, listed above the first.
  """
  escaped = html.escape(title)
  contents = ''.join(
      f'<li><a href="#{_anchor(s.title)}">{html.escape(s.title)}</a>: '
      f'{html.escape(s.line)}</li>' for s in sections)
  bodies = '\n'.join(map(_section, sections))
  return (
      '<!doctype html><html lang="en"><meta charset="utf-8"><meta name='
      '"viewport" content="width=device-width,initial-scale=1"><title>'
      f'{escaped}</title><style>{_STYLE}</style><h1>{escaped}</h1>'
      f'<p>{html.escape(introduction)}</p><ul>{contents}</ul>{bodies}</html>')


def markdown(title, introduction, sections):
  """Returns the same page as Markdown of GitHub.

  Pictures are shown from files of their names beside the page.

  Args:
    title, introduction, sections: as of `page`.
  """
  parts = [f'# {_mark(title)}', _mark(introduction)]
  for s in sections:
    parts += [f'## {_mark(s.title)}', *([_mark(s.line)] if s.line else []),
              *([f'```\n{s.text}\n```'] if s.text else []),
              *map(_markdown_block, s.blocks)]
  return '\n\n'.join(parts) + '\n'


def _section(section):
  parts = [
      f'<h2 id="{_anchor(section.title)}">{html.escape(section.title)}</h2>',
      *([f'<pre>{html.escape(section.text)}</pre>'] if section.text else []),
      *(_picture(*picture) for picture in section.pictures)]
  if section.table:
    parts.append(_block(Folded('All numbers', [Table(*section.table)])))
  return '\n'.join([*parts, *map(_block, section.blocks)])


def _block(block):
  match block:
    case Heading():
      return f'<h3>{html.escape(block.text)}</h3>'
    case Table():
      note = f'<p class="note">{html.escape(block.note)}</p>'
      return (f'<div class="wide" tabindex="0">{_table(block)}</div>'
              + note * bool(block.note))
    case Facts():
      return '<table class="facts">' + ''.join(
          _row(pair, 'td', 2) for pair in block.pairs) + '</table>'
    case Pictures():
      return '<div class="pictures">' + ''.join(
          _picture(caption, data) for _, caption, data in block.files
      ) + '</div>'
    case Folded():
      return (f'<details><summary>{html.escape(block.title)}</summary>'
              f'{"".join(map(_block, block.blocks))}</details>')
  return f'<p>{html.escape(block)}</p>'


def _picture(caption, data):
  kind = 'svg+xml' if data.lstrip().startswith(b'<') else 'png'
  packed, escaped = base64.b64encode(data).decode(), html.escape(caption)
  return (f'<figure><img alt="{escaped}" '
          f'src="data:image/{kind};base64,{packed}">'
          f'<figcaption>{escaped}</figcaption></figure>')


def _table(table):
  return ('<table>' + _row(table.header, 'th', table.texts)
          + ''.join(_row(row, 'td', table.texts) for row in table.rows)
          + '</table>')


def _row(cells, tag, texts):
  left = ' class="t"'  # the first column is always so
  return '<tr>' + ''.join(
      f'<{tag}{left * (0 < i < texts)}>{_cell(cell)}</{tag}>'
      for i, cell in enumerate(cells)) + '</tr>'


def _cell(cell):
  first, *rest = cell if isinstance(cell, tuple) else (cell,)
  return html.escape(str(first)) + ''.join(
      f'<small>{html.escape(str(line))}</small>' for line in rest)


def _anchor(title):
  return ''.join(c if c.isalnum() else '-' for c in title.lower())


def _markdown_block(block):
  match block:
    case Heading():
      return f'### {_mark(block.text)}'
    case Table():
      escape = lambda line: [_markdown_cell(cell) for cell in line]
      return '\n'.join([
          *formats.markdown_table(escape(block.header), map(
              escape, block.rows), block.texts),
          *(['', _mark(block.note)] if block.note else [])])
    case Facts():
      return '\n'.join(f'- {_mark(name)}: {_mark(text)}'
                       for name, text in block.pairs)
    case Pictures():
      return '\n\n'.join(f'![{_mark(caption)}]({name})'
                         for name, caption, _ in block.files)
    case Folded():
      inner = '\n\n'.join(map(_markdown_block, block.blocks))
      title = html.escape(formats.one_line(block.title))
      return (f'<details><summary>{title}</summary>\n\n'
              f'{inner}\n\n</details>')
  return _mark(block)


def _markdown_cell(cell):
  return '<br>'.join(map(_mark, cell if isinstance(cell, tuple) else (cell,)))


def _mark(text):
  return formats.markdown_text(formats.one_line(str(text)))
