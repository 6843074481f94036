"""Files: paths, whole writes, and locks that die with their owner."""

import os
import subprocess
import sys

import fsspec
import pytest
from conftest import ROOT

from mtl_jax import files
from mtl_jax.errors import UserError


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
  monkeypatch.setenv('HOME', str(tmp_path))
  assert str(files.at('~/runs')) == str(tmp_path / 'runs')


def test_a_path_becomes_absolute(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  assert str(files.at('runs')) == str(tmp_path / 'runs')


def test_an_address_stays_as_it_is():
  assert os.fspath(files.at('gs://bucket/~/runs')) == 'gs://bucket/~/runs'


def test_a_folder_that_takes_no_file_is_refused(tmp_path, monkeypatch):
  """Fails if a test of thousands of tasks ends without its results."""
  files.make(files.at(tmp_path / 'a/b'))
  monkeypatch.setattr(os, 'access', lambda path, mode: False)
  with pytest.raises(UserError, match='b: cannot be written .*name another'):
    files.make(files.at(tmp_path / 'a/b'))


@pytest.mark.parametrize('contents', ['new', b'new'])
def test_a_file_is_replaced_as_a_whole(contents, tmp_path):
  path = files.at(tmp_path / 'a')
  path.write_text('something longer')
  files.write(path, contents)
  assert path.read_text() == 'new'
  assert [p.name for p in path.parent.iterdir()] == ['a']


def test_a_write_that_fails_keeps_the_old_file(tmp_path):
  path = files.at(tmp_path / 'a')
  path.mkdir()
  with pytest.raises(UserError, match=f'{path}: cannot be written'):
    files.write(path, 'new')
  assert path.is_dir()
  assert [p.name for p in path.parent.iterdir()] == ['a']


TWICE = """
import json, sys
from etils import epath
from mtl_jax import files
path = epath.Path(sys.argv[1])
for i in range(200):
  files.write(path, json.dumps([i] * 1000))
  with files.writing(epath.Path(sys.argv[2])) as file:
    file.write(json.dumps([i] * 1000).encode())
  json.loads(path.read_text()), json.loads(epath.Path(sys.argv[2]).read_text())
"""


def test_two_processes_replace_a_file_as_a_whole(tmp_path):
  """Fails if one reads, or renames, what the other is writing."""
  both = [subprocess.Popen(
      [sys.executable, '-c', TWICE, tmp_path / 'a', tmp_path / 'b'], cwd=ROOT,
      stderr=subprocess.PIPE) for _ in range(2)]
  errors = [process.communicate()[1].decode() for process in both]
  assert [process.returncode for process in both] == [0, 0], errors
  assert sorted(p.name for p in tmp_path.iterdir()) == ['a', 'b']


def test_text_is_added_to_the_end(tmp_path):
  path = files.at(tmp_path / 'a')
  files.append(path, 'one\n')
  files.append(path, 'two\n')
  assert path.read_text() == 'one\ntwo\n'


def test_an_end_that_cannot_be_written_is_named(tmp_path):
  with pytest.raises(UserError, match=f'{tmp_path}: cannot be written'):
    files.append(files.at(tmp_path), 'one')


def test_a_file_that_cannot_be_opened_is_named_in_one_line(tmp_path):
  with pytest.raises(UserError, match='none: cannot be .*No such file'):
    with files.errors():
      (tmp_path / 'none').read_bytes()


@pytest.mark.parametrize('ask, said', [
    (lambda: fsspec.filesystem('memory').cat('/none'), 'no such bucket or obj'),
    (lambda: fsspec.filesystem('gs'), 'gcsfs')])
def test_what_an_object_store_refuses_gets_one_line(ask, said, monkeypatch):
  """Fails if a wrong bucket, or no client, ends in a traceback."""
  monkeypatch.setitem(sys.modules, 'gcsfs', None)
  with pytest.raises(UserError, match=f'{said}.*mtl_jax.gs.*log in'):
    with files.errors():
      ask()


def test_an_error_of_no_file_is_a_fault_of_ours():
  with pytest.raises(BrokenPipeError), files.errors():
    raise BrokenPipeError(32, 'Broken pipe')


def test_a_folder_that_cannot_be_written_is_refused(monkeypatch, tmp_path):
  """Fails if a test is measured before its results cannot be written."""
  monkeypatch.setattr(os, 'access', lambda *_: False)
  with pytest.raises(UserError, match='cannot be written .Permission denied'):
    files.make(files.at(tmp_path))


@pytest.mark.parametrize('path, can', [('runs/a', True), ('gs://b/a', False)])
def test_object_stores_cannot_append(path, can):
  assert files.can_append(files.at(path)) == can


HOLD = """
import sys, time
from mtl_jax import files
with files.lock(sys.argv[1]) as held:
  print(held, flush=True)
  time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
  """A process that holds the lock of a folder."""
  process = subprocess.Popen(
      [sys.executable, '-c', HOLD, str(tmp_path / 'run')],
      stdout=subprocess.PIPE, text=True,
      env={**os.environ, 'PYTHONPATH': str(ROOT)})
  assert process.stdout.readline() == 'True\n'
  yield process
  process.kill()
  process.wait()
  process.stdout.close()


def test_a_lock_that_another_process_holds_is_refused(holder, tmp_path):
  with pytest.raises(BlockingIOError):
    with files.lock(tmp_path / 'run', wait=False):
      pass


def test_a_lock_dies_with_its_owner(holder, tmp_path):
  holder.kill()
  holder.wait()
  with files.lock(tmp_path / 'run', wait=False) as held:
    assert held


def test_an_error_within_a_lock_is_passed_on(tmp_path):
  """Fails if an error in a build counts as a file system without locks."""
  with pytest.raises(OSError, match='mine'):
    with files.lock(tmp_path):
      raise OSError('mine')


@pytest.mark.parametrize('head', [
    b'<html>', b'\n<!DOCTYPE html><html>', b'\xef\xbb\xbf <HEAD>', b'<?xml ?>'])
def test_a_page_is_recognised(head):
  assert files.is_html(head)


@pytest.mark.parametrize('head', [b'', b'PK\3\4', b'filename,label\n'])
def test_other_files_are_no_page(head):
  assert not files.is_html(head)
