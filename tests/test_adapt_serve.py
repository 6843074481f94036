"""Pictures that come one by one: on stdin, or into a folder."""

import json
import os
import select
import signal
import subprocess
import sys
import threading

import command
import numpy as np
import pytest
import untrained
from PIL import Image

from mtl_jax.adapt import classify, serve
from mtl_jax.adapt.__main__ import main

SIZES = {'a': 3, 'b': 3}


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  """A folder with a run, a kept head and pictures."""
  path = tmp_path_factory.mktemp('serve')
  untrained.run(path / 'run')
  untrained.pictures(path / 'known', SIZES)
  untrained.pictures(path / 'new', SIZES, seed=1)
  assert main([f'--checkpoint={path / "run"}', f'--support={path / "known"}',
               f'--save_head={path / "head.safetensors"}']) == 0
  return path


@pytest.fixture(scope='module')
def answers(home):
  """Returns name -> probabilities of the pictures in `new`."""
  result = classify.adapt(home / 'run', query=home / 'new',
                          load_head=home / 'head.safetensors')
  return {os.path.relpath(row['file'], home): row
          for row in result['predictions']}


def start(home, *flags):
  """Starts the command within `home`; returns the process, once ready."""
  env = {**os.environ, 'XLA_FLAGS': command.FAST_COMPILES,
         'PYTHONPATH': str(command.ROOT)}
  process = subprocess.Popen(
      [sys.executable, '-m', 'mtl_jax.adapt', '--checkpoint=run', *flags],
      cwd=home, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
      stderr=subprocess.PIPE)
  for line in process.stderr:
    if line == b'mtl_jax.adapt: ready\n':
      return process
  pytest.fail(f'it ended with code {process.wait()}')


def answer(process):
  """Returns the next line of a process as JSON, within two minutes."""
  assert select.select([process.stdout], [], [], 120)[0], 'no line'
  return json.loads(process.stdout.readline())


def check(said, answers, name):
  expected = answers[name]
  assert (said['file'], said['predicted']) == (name, expected['predicted'])
  np.testing.assert_allclose(list(said['probabilities'].values()),
                             list(expected['probabilities'].values()),
                             atol=1e-6)


def test_each_line_of_stdin_gets_a_line_at_once_until_the_end(home, answers):
  process = start(home, '--load_head=head.safetensors', '--query=-')
  for name, error in (
      ('new/a/0.png', None), ('nope.png', 'cannot be read'),
      ('head.safetensors', 'is no image'), ('a\0b', 'cannot be read'),
      ('new/b/1.png', None)):
    process.stdin.write(name.encode() + b'\n')
    process.stdin.flush()
    said = answer(process)  # before the next one is asked
    if error:
      assert error in said['error'] and 'predicted' not in said
    else:
      check(said, answers, name)
  # An empty line is nothing, and the last one need not end.
  out, err = process.communicate(b'\n\r\nnew/a/1.png', timeout=120)
  check(json.loads(out), answers, 'new/a/1.png')
  assert (process.returncode, err) == (0, b'')


def test_a_folder_is_served_until_a_signal(home, answers, tmp_path):
  (tmp_path / 'inbox').mkdir()
  for name in ('run', 'head.safetensors'):
    (tmp_path / name).symlink_to(home / name)
  process = start(tmp_path, '--load_head=head.safetensors', '--watch=inbox')
  content = (home / 'new/b/2.png').read_bytes()
  file = tmp_path / 'inbox/later/x.png'
  file.parent.mkdir()
  file.write_bytes(content[:50])
  (file.parent / 'y.part').write_bytes(content)
  file.write_bytes(content)
  said = answer(process)
  expected = answers['new/b/2.png']
  assert said['file'] == 'inbox/later/x.png'
  assert said['predicted'] == expected['predicted']
  process.send_signal(signal.SIGTERM)
  out, err = process.communicate(timeout=120)
  assert (process.returncode, out, err) == (0, b'', b'')


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_loop_after_the_picture_that_it_is_at(number, capsys):
  before = signal.getsignal(number)

  def loop(write, stopped):
    signal.raise_signal(number)
    write({'file': 'a'})
    assert stopped.is_set()

  serve.run(loop)
  assert capsys.readouterr().out == '{"file": "a"}\n'
  assert signal.getsignal(number) is before


def test_nothing_is_said_where_nobody_listens_any_more(home):
  """Fails if `| head -1` ends in a traceback."""
  process = start(home, '--load_head=head.safetensors', '--query=-')
  process.stdout.close()
  _, err = process.communicate(b'new/a/0.png\n' * 5, timeout=120)
  assert (process.returncode, err) == (0, b'')


def test_what_a_start_does_not_need_is_not_imported():
  """Fails if libraries for data sets or drawing delay the first answer."""
  done = command.run(
      ['import sys\nfrom mtl_jax.adapt import classify, serve\n'
       'print({"matplotlib", "tensorflow_datasets"} & {*sys.modules})'],
      program=('-c',))
  assert done.stdout == 'set()\n', done.stdout + done.stderr


class Clock:
  """Time that passes when the loop waits; things happen at their time."""

  def __init__(self, happens):
    self.now, self.happens = 0., dict(happens)

  def monotonic(self):
    return self.now

  def is_set(self):
    return self.now > 40

  def wait(self, seconds):
    self.now += seconds
    for at in [at for at in self.happens if at <= self.now]:
      self.happens.pop(at)()


def watched(folder, happens, monkeypatch):
  """Returns [(time, file, answer)] of a folder while things happen."""
  clock, said = Clock(happens), []
  monkeypatch.setattr(serve, 'time', clock)
  answer = lambda path: ({'file': path} if (
      text := open(path, encoding='utf-8').read()).endswith('whole')
      else {'file': path, 'error': text})
  serve.from_folder(folder, answer, lambda x: said.append(
      (clock.now, os.path.basename(x['file']), x.get('error'))), clock)
  return said


def test_a_picture_is_answered_once_and_not_before_it_is_whole(
    tmp_path, monkeypatch):
  put = lambda name, text: lambda: (tmp_path / name).write_text(text)
  put('old.png', 'whole')()
  said = watched(tmp_path, {
      1: put('a.png', 'part'), 1.1: put('.hidden.png', 'whole'),
      1.2: put('notes.txt', 'whole'), 1.3: put('a.png', 'more part'),
      3: put('a.png', 'a whole'), 5: put('bad.png', 'damaged'),
      6: lambda: (tmp_path / 'a.png').rename(tmp_path / 'b.png'),
      20: put('old.png', 'another whole')}, monkeypatch)
  assert [entry[1:] for entry in said] == [
      ('old.png', None), ('a.png', None), ('b.png', None),
      ('bad.png', 'damaged'), ('old.png', None)]
  times = [entry[0] for entry in said]
  assert times[0] < 1 and 3.5 <= times[1] < 4.5 and 10 <= times[3] < 11
  assert times[4] > 20


def test_what_waits_for_a_writer_is_no_picture(home, answers, tmp_path):
  """Fails if a FIFO stops the loop for good."""
  for name in ('run', 'head.safetensors', 'new'):
    (tmp_path / name).symlink_to(home / name)
  (tmp_path / 'inbox').mkdir()
  os.mkfifo(tmp_path / 'inbox/a.png')
  ready = classify.recall(home / 'run', home / 'head.safetensors')
  said = serve.answers(ready)(str(tmp_path / 'inbox/a.png'))
  assert 'is no image that can be read' in said['error']
  assert serve._pictures_in(tmp_path / 'inbox') == {}


def test_a_stdin_that_is_closed_gets_one_line(home, monkeypatch, capsys):
  monkeypatch.setattr(sys, 'stdin', None)
  assert main([f'--checkpoint={home / "run"}', '--query=-',
               f'--load_head={home / "head.safetensors"}']) == 2
  assert capsys.readouterr().err.splitlines()[-1].endswith(
      '--query - is stdin, which is closed: write paths to it')


def test_a_folder_that_is_gone_ends_the_loop_in_one_line(tmp_path):
  with pytest.raises(serve.UserError, match='--watch .* is not there'):
    serve.from_folder(tmp_path / 'x', None, None, threading.Event())


def test_pictures_that_influence_each_other_are_not_served(home, capsys):
  untrained.run(home / 'anil', 'anil', train__ways=2, validation__ways=2,
                eval__ways=2)
  flags = [f'--checkpoint={home / "anil"}', f'--support={home / "known"}',
           '--query=-', '--uncalibrated']
  assert main(flags) == 2
  said = capsys.readouterr().err
  assert said.count('\n') == 1
  assert 'cannot be classified one by one' in said
  assert '--batch_norm=support' in said


def test_a_picture_costs_one_image(home):
  """Fails if it passes through the network with 31 empty ones."""
  ready, seen = classify.recall(home / 'run', home / 'head.safetensors'), []
  learner = ready.classifier.learner
  inputs = lambda x: seen.append(x.shape) or learner.inputs(x)
  ready = ready._replace(classifier=ready.classifier._replace(
      learner=learner._replace(inputs=inputs)))
  serve.answers(ready)(str(home / 'new/a/0.png'))
  assert set(seen) == {(1, untrained.SIDE, untrained.SIDE, 1)}


def test_a_white_background_is_noted(home, tmp_path):
  Image.new('L', (30, 30), 'white').save(tmp_path / 'white.png')
  ready = classify.recall(home / 'run', home / 'head.safetensors')
  ready = ready._replace(model=ready.model._replace(
      data={**ready.model.data, 'mean': [0.1]}))
  said = serve.answers(ready)(str(tmp_path / 'white.png'))
  assert said['note'].endswith('try --invert')


def test_a_guess_of_bits_is_noted(home, tmp_path):
  Image.fromarray(np.full((30, 30), 3000, np.uint16)).save(tmp_path / 'x.tif')
  ready = classify.recall(home / 'run', home / 'head.safetensors')
  said = serve.answers(ready)(str(tmp_path / 'x.tif'))
  assert said['note'] == 'it was read as 12 bits per pixel, as it uses no more'
