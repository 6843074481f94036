"""A second start reads the programs that the first one has compiled."""

import os
import time

import command
import jax
import pytest

from mtl_jax import compile_cache

SETTINGS = ('jax_compilation_cache_dir',
            'jax_persistent_cache_min_compile_time_secs')


@pytest.fixture
def home(tmp_path, monkeypatch):
  """A home of its own, and a JAX that has not been told about a cache."""
  before = {name: getattr(jax.config, name) for name in SETTINGS}
  jax.config.update('jax_compilation_cache_dir', None)
  for name in (*map(str.upper, SETTINGS), 'XDG_CACHE_HOME'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv('HOME', str(tmp_path))
  yield tmp_path
  for name, value in before.items():
    jax.config.update(name, value)


def test_a_second_run_compiles_nothing_again(home, tmp_path):
  """Fails if a run does not keep its programs, or does not find them.

  The third one finds entries that a killed process has written in part.
  """
  texts = []
  for name in ('first', 'second', 'third'):
    if name == 'third':
      for file in (home / '.cache').rglob('*-cache'):
        os.truncate(file, file.stat().st_size // 2)
    run = command.run(
        command.arguments(tmp_path / name, config__train__max_epochs=1,
                          config__optimizer__decay_epochs=1),
        env={'JAX_DEBUG_LOG_MODULES': 'jax._src.compiler'})
    assert run.returncode == 0, run.stderr
    texts.append(run.stderr)
  hit = "Persistent compilation cache hit for 'jit_step'"
  assert [hit in text for text in texts] == [False, True, False]
  assert list((home / '.cache/mtl_jax/compiled').glob('*/jit_step-*'))


def test_entries_that_were_made_long_ago_are_removed(home):
  """Fails if the folder grows for ever, or a new entry is lost."""
  folder = compile_cache.folder()
  folder.mkdir(parents=True)
  days = {'old': compile_cache.KEPT_DAYS + 1, 'new': 1}
  for name, age in days.items():
    (folder / name).write_text('')
    os.utime(folder / name, (time.time() - 86400 * age,) * 2)
  compile_cache.keep()
  assert [file.name for file in folder.iterdir()] == ['new']
  assert jax.config.jax_compilation_cache_dir == str(folder)
  assert folder.is_relative_to(home / '.cache')


@pytest.mark.parametrize('told', ['', '/elsewhere'])
def test_the_environment_goes_first(home, monkeypatch, told):
  """Fails if a user's own cache, or none, is overruled."""
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', told)
  compile_cache.keep()
  assert jax.config.jax_compilation_cache_dir is None
  assert not (home / '.cache').exists()


def test_a_folder_that_cannot_be_made_is_no_error(home):
  """Fails if a home that is read-only or full ends a run."""
  (home / '.cache').write_text('a file')
  compile_cache.keep()
  assert jax.config.jax_compilation_cache_dir is None
