"""The fuzz of the command line finds the faults that it looks for."""

import os
import pathlib
import sys

import pytest
from conftest import ROOT


@pytest.fixture
def fuzz(monkeypatch):
  monkeypatch.syspath_prepend(ROOT / 'benchmarks')
  import fuzz_config
  return fuzz_config


def refuse(argv):
  print('mtl_jax: config.seed is wrong', file=sys.stderr)
  return 2


def crash(argv):
  raise KeyError('a')


def say_two_lines(argv):
  print('one', file=sys.stderr)
  return refuse(argv)


def leave_a_folder(argv):
  os.mkdir('~')
  return refuse(argv)


def leave_a_workdir(argv):
  pathlib.Path(argv[2].partition('=')[2]).mkdir()
  return refuse(argv)


def write_nothing(argv):
  return 0


@pytest.mark.parametrize('main, text', [
    (crash, "exit code 1: "), (say_two_lines, 'not one line: one'),
    (leave_a_folder, "left ['home/~']"), (leave_a_workdir, "left ['run']"),
    (write_nothing, 'exit code 0, but ')])
def test_a_fault_is_found_and_its_command_printed(
    main, text, fuzz, monkeypatch, capsys):
  monkeypatch.setattr(fuzz.command, 'main', main)
  assert fuzz.main(['--workers=0', '--processes=0', '--cases=1']) == 1
  printed = capsys.readouterr().out
  assert text in printed and '--config.data.name=glyphs/tiny' in printed
  assert '1 cases, 0 run, 0 refused, 0 stopped, 0 long, 1 fault' in printed


def test_a_refusal_is_no_fault(fuzz, monkeypatch, capsys):
  monkeypatch.setattr(fuzz.command, 'main', refuse)
  assert fuzz.main(['--workers=0', '--processes=0', '--cases=1']) == 0
  assert '1 refused' in capsys.readouterr().out
