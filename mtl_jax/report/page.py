"""One HTML page of texts, pictures and tables; it needs no other file."""

import base64
import html
from typing import NamedTuple

_STYLE = (
    'body{font:15px/1.45 sans-serif;max-width:1100px;margin:2em auto;padding:'
    '0 1em}pre{background:#f4f4f4;padding:.8em;white-space:pre-wrap}img{max-'
    'width:100%}table{border-collapse:collapse;font-size:13px}td,th{border:1px'
    ' solid #ccc;padding:.15em .6em;text-align:right}figure{margin:1em 0}'
    'figcaption{color:#555}')


class Section(NamedTuple):
  """A section of a page; all texts are shown as they are.

  title: its heading; no two sections of a page have the same.
  line: shown beside the title in the list of contents.
  text: lines in a fixed width.
  pictures: [(caption, bytes of a PNG)].
  table: (header, rows), shown on a click; None for none.
  """

  title: str
  line: str
  text: str
  pictures: list | tuple = ()
  table: tuple | None = None


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
      f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escaped}'
      f'</title><style>{_STYLE}</style><h1>{escaped}</h1>'
      f'<p>{html.escape(introduction)}</p><ul>{contents}</ul>{bodies}</html>')


def _section(section):
  parts = [
      f'<h2 id="{_anchor(section.title)}">{html.escape(section.title)}</h2>',
      f'<pre>{html.escape(section.text)}</pre>',
      *(_picture(caption, png) for caption, png in section.pictures)]
  if section.table:
    parts.append(f'<details><summary>All numbers</summary>'
                 f'{_table(*section.table)}</details>')
  return '\n'.join(parts)


def _picture(caption, png):
  data = base64.b64encode(png).decode()
  return (f'<figure><img alt="" src="data:image/png;base64,{data}">'
          f'<figcaption>{html.escape(caption)}</figcaption></figure>')


def _table(header, rows):
  return ('<table>' + _row(header, 'th')
          + ''.join(_row(row, 'td') for row in rows) + '</table>')


def _row(cells, tag):
  return '<tr>' + ''.join(
      f'<{tag}>{html.escape(str(cell))}</{tag}>' for cell in cells) + '</tr>'


def _anchor(title):
  return ''.join(c if c.isalnum() else '-' for c in title.lower())
