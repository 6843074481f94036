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
