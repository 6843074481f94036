"""The structure that CONTRIBUTING.md describes is the one that there is."""

import re

import house
import pytest

from mtl_jax.config import __main__ as config_page

MEASURED = house.measure()


@pytest.mark.parametrize('rule', [
    'upward import edges', 'functions above 60 lines',
    'files below run/ that take a whole config'])
def test_the_rules_of_the_house_hold(rule):
  assert MEASURED[rule] == []


def test_every_import_is_seen():
  """Fails if the rule on upward imports is checked on an empty set."""
  assert ('run.parts', 'train.step') in MEASURED['import edges']
  assert house.floor('train.step') > house.floor('run.parts')


def test_the_page_of_fields_is_made_of_the_declarations():
  """Fails if a field was changed and `python -m mtl_jax.config` not run."""
  assert config_page.page() == (
      house.ROOT / 'docs/fields.md').read_text(encoding='utf-8')


def test_the_page_of_recipes_is_made_of_the_recipes(capsys):
  """Fails if a recipe changed and `mtl_jax.config recipes` was not run."""
  config_page.main(['recipes'])
  assert capsys.readouterr().out == (
      house.ROOT / 'docs/recipes.md').read_text(encoding='utf-8')


def test_links_of_documents_lead_to_files():
  """Fails if a page or a picture that a document links to is not there."""
  pages = [*house.ROOT.glob('*.md'), *house.ROOT.glob('docs/**/*.md')]
  links = [(page, link) for page in pages for link in re.findall(
      r'\]\(([^)#:\s]+)(?:#[^)]*)?\)', page.read_text('utf-8'))]
  assert len(links) > 100
  assert not [(page.name, link) for page, link in links
              if not (page.parent / link).exists()]
