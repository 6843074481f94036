"""`where NAME` says which files are needed or there; --download fetches."""

import contextlib
import hashlib
import http.server
import os
import pathlib
import socket
import threading
import types

import cifar100_fake as fake
import numpy as np
import own_source as own
import pytest
from tensorflow_datasets.core.download import checksums
from test_cifar100 import LAYOUTS

from mtl_jax.data import __main__ as data_main
from mtl_jax.data import sources
from mtl_jax.data import store as stores
from mtl_jax.data.source import PublishedFile
from mtl_jax.data.sources.imagenet import ilsvrc

ARCHIVE = 'cifar-100-binary.tar.gz'
KNOWN = b'as published'
SHA256 = f'sha256 {hashlib.sha256(KNOWN).hexdigest()}'
REAL = pathlib.Path(os.environ.get('MTL_JAX_TEST_DATA', 'none'))


@pytest.fixture
def data(tmp_path, monkeypatch):
  fake.use(monkeypatch, tmp_path / 'data')
  monkeypatch.setenv('no_proxy', '*')
  return tmp_path


def where(capsys, *arguments):
  """Returns the lines that the command prints."""
  assert data_main.main(['where', *map(str, arguments)]) == 0
  return capsys.readouterr().out.splitlines()


def refused(capsys, *arguments):
  """Returns the one line that refuses a command."""
  assert data_main.main([*map(str, arguments)]) == 2
  line, = capsys.readouterr().err.splitlines()
  return line


@pytest.mark.parametrize('name', ['glyphs/tiny', 'cifar_fs'])
def test_the_first_line_is_the_folder_alone(name, data, capsys):
  """Fails if a script that reads it gets something else."""
  first, second, *_ = where(capsys, name)
  assert first == str(stores.builder(name).data_path)
  assert second == 'not built'


def test_the_size_of_a_built_data_set_is_said(data, capsys):
  folder = own.write_folder(data / 'birds')
  assert data_main.main(['build', str(folder)]) == 0
  capsys.readouterr()
  first, second, about, files = where(capsys, folder)
  size = sum(p.stat().st_size for p in pathlib.Path(first).iterdir())
  assert second == f'built, {size:,} bytes'
  assert (about, files) == (f'The images of {folder}.',
                            'No published files are needed.')


def test_a_source_of_your_own_is_called_so(data, capsys):
  assert where(capsys, own.write_file(data / 'mine.py'))[2] == (
      'A data source of your own.')


def test_what_must_be_fetched_is_said_with_size_and_checksum(data, capsys):
  text = '\n'.join(where(capsys, 'fc100'))
  assert (f'{ARCHIVE}: 168,513,733 bytes; sha256 58a81ae192c23a4be8b1804d68e518'
          'ed807d710a4eb253b1f2a199162a40d8ec; https://www.cs.toronto.edu/'
          ) in text
  assert 'FC100_{train,val,test}.pickle: size not known; checksum not' in text


STATES = {
    'as published': (KNOWN, 'x, 12 bytes, size and sha256 as published'),
    'shorter': (KNOWN[:-3], 'x, 9 bytes, but 3 bytes shorter than published'),
    'longer': (KNOWN + b'!', '13 bytes, but 1 bytes longer than published'),
    'changed': (KNOWN.upper(), 'another than published'),
    'missing': (None, 'missing'),
}


@pytest.fixture
def small(monkeypatch):
  """Gives the files of cifar_fs other names and small sizes."""
  monkeypatch.setitem(sources.SOURCES, 'cifar_fs', sources.SOURCES[
      'cifar_fs']._replace(layouts={
          'one': (PublishedFile('x', len(KNOWN), SHA256),),
          'two': (PublishedFile('{y,z}.csv'), PublishedFile('WNID/*.jpg'))}))


@pytest.mark.parametrize('case', STATES)
def test_a_file_is_compared_with_the_published_one(case, small, data, capsys):
  content, said = STATES[case]
  fake.write(data / 'files/a/b', {} if content is None else {'x': content})
  (data / 'files').mkdir(exist_ok=True)
  lines = where(capsys, 'cifar_fs', f'--manual_dir={data / "files"}')
  assert lines[5].endswith(said)


def test_files_of_which_nothing_is_known_are_found(small, data, capsys):
  fake.write(data / 'files', {
      'y.csv': b'1', 'z.csv': b'<!DOCTYPE html>', 'n00000001/1.jpg': b'',
      'n00000001/2.jpg': b'', 'n1/3.jpg': b''})
  lines = where(capsys, 'cifar_fs', f'--manual_dir={data / "files"}')[8:]
  assert lines[0].endswith(
      'y.csv, 1 bytes, not compared: neither size nor checksum is known')
  assert lines[1].endswith('an HTML page that was saved in place of the file')
  assert lines[3] == '      2 there'


@pytest.mark.parametrize('layout', ['archive', 'binary archive', 'npz',
                                    'binary unpacked', 'pickles',
                                    'pickles of Python 2, renamed', 'hdf5',
                                    'archive unpacked twice wrapped',
                                    'zip of class folders', 'class folders'])
def test_the_files_of_every_layout_are_named(layout, data, capsys):
  """Fails if `where` asks for other files than the build reads."""
  if layout == 'hdf5':
    pytest.importorskip('h5py')
  LAYOUTS[layout](data / 'files', 'fc100')
  lines = where(capsys, 'fc100', f'--manual_dir={data / "files"}')[3:]
  starts = [i for i, line in enumerate(lines) if line[2] != ' ']
  parts = [lines[a:b] for a, b in zip(starts, [*starts[1:], None],
                                      strict=True)]
  assert any('missing' not in '\n'.join(part) for part in parts)


def test_sizes_and_checksums_are_those_that_tfds_knows():
  """Fails if whole files are called damaged, as by a slip of the pen."""
  known = checksums.get_all_url_infos()
  files = {file for source in sources.SOURCES.values()
           for layout in source.layouts.values() for file in layout
           if file.url and file.checksum.startswith('sha256')}
  assert len(files) == 5
  for file in files:
    assert (file.size, file.checksum) == (
        known[file.url].size, f'sha256 {known[file.url].checksum}')
  assert ilsvrc.TAR.size == 147_897_477_120


@pytest.mark.skipif(not (REAL / 'omniglot').is_dir(),
                    reason='needs the files in $MTL_JAX_TEST_DATA')
@pytest.mark.parametrize('name, count', [('omniglot', 2), ('mini_imagenet', 6)])
def test_real_files_are_as_published(name, count, data, capsys):
  (data / 'files').mkdir()
  for path in [*(REAL / name).glob('*.csv'), *(REAL / name).glob('*ground*')]:
    (data / 'files' / path.name).symlink_to(path)
  lines = where(capsys, name, f'--manual_dir={data / "files"}')
  assert sum('size and sha256 as published' in line for line in lines) == count


def test_a_wrong_option_of_where_gets_one_line(data, capsys):
  assert 'takes --manual_dir alone' in refused(
      capsys, 'where', 'fc100', '--channel_order=bgr')
  assert 'nowhere is no folder' in refused(
      capsys, 'where', 'fc100', f'--manual_dir={data / "nowhere"}')


# --download.


@pytest.fixture
def server():
  """Yields path -> content, which a server on this machine has, and its log."""
  contents, log = {}, []

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      log.append(self.path)
      content = contents.get(self.path)
      self.send_response(404 if content is None else 200)
      self.send_header('Content-Length', str(len(content or b'')))
      self.end_headers()
      with contextlib.suppress(ConnectionError):  # it stops when it has enough
        self.wfile.write(content or b'')

    def log_message(self, *_):
      pass

  with http.server.ThreadingHTTPServer(('localhost', 0), Handler) as running:
    thread = threading.Thread(target=running.serve_forever, args=(.02,))
    thread.start()
    yield contents, log, f'http://localhost:{running.server_port}/{ARCHIVE}'
    running.shutdown()
    thread.join()


@pytest.fixture
def archive(server, data, monkeypatch):
  """The published archive is a small one, which the server has."""
  contents, log, url = server
  LAYOUTS['binary archive'](data / 'made', None)
  content = (data / 'made' / ARCHIVE).read_bytes()
  contents[f'/{ARCHIVE}'] = content
  for name in fake.PREFIX:
    publish(monkeypatch, name, url, content)
  return server


def publish(monkeypatch, name, url, content):
  """Says that `content` is what is published at `url`."""
  file = PublishedFile(ARCHIVE, len(content),
                       f'sha256 {hashlib.sha256(content).hexdigest()}', url)
  monkeypatch.setitem(sources.SOURCES, name, sources.SOURCES[name]._replace(
      layouts={'archive': (file,)}))


def test_an_archive_is_fetched_once_and_built(archive, data):
  for name in fake.PREFIX:
    assert data_main.main(['build', name, '--download']) == 0
    np.testing.assert_array_equal(stores.load(name, 'test').images[:3],
                                  fake.images()[2])  # baby
  # It is built. The fakes have other colours than the published images.
  assert data_main.main(['check', 'fc100', '--download=yes']) == 2
  assert archive[1] == [f'/{ARCHIVE}']
  assert {p.name for p in (data / 'data/downloads').rglob('*')
          if p.is_file()} == {'.lock', ARCHIVE}


def cut(content):
  return content[:-7]


FAILURES = {
    'not there': (lambda c: None, 'HTTP Error 404'),
    'cut short': (cut, '7 bytes shorter than published'),
    'another file': (lambda c: c[::-1], 'another than published'),
    'a web page': (lambda c: b'<html>'.ljust(len(c)), 'an HTML page'),
    'without end': (lambda c: c * 99, 'longer than published'),
}


@pytest.mark.parametrize('case', FAILURES)
def test_what_is_not_as_published_is_not_kept(case, archive, data, capsys):
  """Fails if a part of an archive is taken for the whole."""
  contents, _, url = archive
  change, said = FAILURES[case]
  contents[f'/{ARCHIVE}'] = change(contents[f'/{ARCHIVE}'])
  line = refused(capsys, 'build', 'cifar_fs', '--download')
  assert said in line
  assert url in line and f'fetch {ARCHIVE} by hand' in line
  assert [p.name for p in (data / 'data').rglob('*')] == ['downloads', '.lock']


def test_without_a_network_one_line_says_what_to_put_where(
    archive, data, capsys, monkeypatch):
  with socket.socket() as silent:
    silent.bind(('localhost', 0))  # and nobody listens
    url = f'http://localhost:{silent.getsockname()[1]}/none.tar.gz'
    publish(monkeypatch, 'cifar_fs', url, b'')
    line = refused(capsys, 'build', 'cifar_fs', '--download')
  assert f'{url} cannot be fetched (' in line and 'refused' in line
  assert f'fetch {ARCHIVE} by hand, put it into a folder and name' in line


def test_what_a_killed_download_left_is_not_taken(archive, data):
  """Fails if half an archive is built from, or stays for ever."""
  content = archive[0][f'/{ARCHIVE}']
  folder = data / 'data/downloads'
  fake.write(folder, {
      f'incomplete.abc_cifar-100-binary/{ARCHIVE}': cut(content),
      f'cifar-100-binary/{ARCHIVE}': cut(content)})  # damaged later
  assert data_main.main(['build', 'cifar_fs', '--download']) == 0
  assert (folder / 'cifar-100-binary' / ARCHIVE).read_bytes() == content
  assert not list(folder.glob('incomplete.*'))


def test_a_download_into_an_object_store_gets_one_line(
    archive, data, capsys, monkeypatch):
  """Fails if the archive is written into a folder 'gs:' of this machine."""
  monkeypatch.setenv('MTL_JAX_DATA', 'gs://bucket/data')
  monkeypatch.setattr(stores.building, 'builder', lambda *_: (
      types.SimpleNamespace(data_path=data / 'none',
                            data_dir_root='gs://bucket/data')))
  monkeypatch.chdir(data)
  assert 'gs://bucket/data is no folder of this machine' in refused(
      capsys, 'build', 'fc100', '--download')
  assert not (data / 'gs:').exists()


def test_a_download_that_cannot_be_meant_gets_one_line(data, capsys):
  assert 'glyphs/tiny has no archive that can be fetched: leave it out' in (
      refused(capsys, 'build', 'glyphs/tiny', '--download'))
  assert 'omniglot has no archive that can be fetched: put the zips' in (
      refused(capsys, 'build', 'omniglot', '--download'))
  assert 'leave one of them out' in refused(
      capsys, 'build', 'fc100', '--download', f'--manual_dir={data}')
  assert '--download is \'maybe\': allowed are yes, no' in refused(
      capsys, 'build', 'fc100', '--download=maybe')


@pytest.mark.parametrize('argv, line', [
    (['build', 'glyphs/tiny', '--name=x'], "glyphs/tiny --name is unknown"),
    (['build', 'glyphs/tiny', '--directory=x'], '--directory is unknown'),
    (['where', 'glyphs', '--name=x'], '--name: where takes --manual_dir')])
def test_an_option_is_none_of_our_own_names(argv, line, capsys):
  """Fails with a traceback, or builds where nothing loads from."""
  assert line in refused(capsys, *argv)
