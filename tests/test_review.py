"""Faults that a review of the redesign showed, each with its input."""

import os

import pytest
from conftest import ROOT

from mtl_jax.config import flags

CONFIG = f'--config={ROOT}/configs/glyphs_5shot.py'


def parse(*argv):
  return flags.parse([CONFIG, *argv], saved_config=None)


@pytest.mark.parametrize('text, expected', [('-0.5', -0.5), ('-3', -3.)])
def test_a_number_below_zero_may_follow_its_flag(text, expected):
  config = parse('--config.heads.ridge.target', text).config
  assert config.heads.ridge.target == expected


@pytest.mark.parametrize('text, expected', [('t', True), ('F', False)])
def test_a_truth_value_may_be_one_letter(text, expected):
  assert parse(f'--config.eval.baselines={text}'
               ).config.eval.baselines is expected


def test_an_empty_workdir_is_the_default():
  """Fails if `--workdir=$UNSET` takes the folder of the command."""
  assert parse('--workdir=').workdir == os.path.join('runs',
                                                     'glyphs_5shot_mtl')
