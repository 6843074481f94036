"""The HTML page of sections."""

from mtl_jax.report import page


def test_a_page_shows_texts_as_they_are():
  """Fails if a name with < or & breaks the page."""
  html = page.page('A & B', 'x < y', [page.Section(
      'C < D', 'line <b>', 'text & more', [('a <caption>', b'PNG')],
      (('h<1',), [('<td>',)]))])
  for text in ('A &amp; B', 'x &lt; y', 'C &lt; D', 'line &lt;b&gt;',
               'text &amp; more', 'a &lt;caption&gt;', 'h&lt;1',
               '<td>&lt;td&gt;</td>'):
    assert text in html
  assert 'src="data:image/png;base64,UE5H"' in html


def test_contents_lead_to_the_sections():
  """Fails if a link in the list of contents leads nowhere."""
  html = page.page('T', '', [page.Section('One, two', 'holds', 'text')])
  assert '<li><a href="#one--two">One, two</a>: holds</li>' in html
  assert '<h2 id="one--two">' in html
  assert '<table>' not in html and '<figure>' not in html


BLOCKS = [
    page.Heading('A <b> | head'), 'a <i> paragraph',
    page.Table(('a', ('b', 'small <x>')), [('r|1', ('1', '2 <y>'))],
               note='a *note*'),
    page.Facts([('name', 'text <z>')]),
    page.Folded('more <u>', [page.Pictures([('p.svg', 'c <v>', b'<svg/>')])])]


def test_blocks_are_shown_as_they_are():
  html = page.page('T', '', [page.Section('S', 'line', blocks=BLOCKS)])
  for text in ('<h3>A &lt;b&gt; | head</h3>', '<p>a &lt;i&gt; paragraph</p>',
               '<th>b<small>small &lt;x&gt;</small></th>', '<td>r|1</td>',
               '<p class="note">a *note*</p>', '<td class="t">text &lt;z&gt;',
               '<summary>more &lt;u&gt;</summary>',
               'alt="c &lt;v&gt;" src="data:image/svg+xml;base64,PHN2Zy8+"'):
    assert text in html
  assert '<pre>' not in html


def test_the_markdown_has_the_same_blocks():
  text = page.markdown('T', 'in', [page.Section('S', 'line', 'fixed',
                                                blocks=BLOCKS)])
  assert text == r'''# T

in

## S

line

```
fixed
```

### A \<b\> \| head

a \<i\> paragraph

| a | b<br>small \<x\> |
|---|---:|
| r\|1 | 1<br>2 \<y\> |

a \*note\*

- name: text \<z\>

<details><summary>more &lt;u&gt;</summary>

![c \<v\>](p.svg)

</details>
'''
