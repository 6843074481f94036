"""A stand-in for Cloud Storage on this machine: `object_store.py PORT`.

It is gcp-storage-emulator, with what it lacks and clients of gs:// use: moveTo,
lists between two names, and conditions on generations. Clients may do
everything in the bucket 'bucket', only read 'readonly', and have no rights to
the bucket 'objects' itself but to the objects in it.
"""

import contextlib
import http
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request

from gcp_storage_emulator import exceptions, server
from gcp_storage_emulator.handlers import buckets, objects

LOCK = threading.RLock()
BUCKETS = 'bucket', 'readonly', 'objects'
_MOVE = (r'/storage/v1/b/(?P<bucket_name>[-.\w]+)/o/(?P<object_id>.*)/moveTo/o'
         r'/(?P<dest_object_id>.*)')


def move(request, response, storage):
  """Renames an object of a bucket."""
  request.params['dest_bucket_name'] = request.params['bucket_name']
  objects.copy(request, response, storage)
  if response.status == http.HTTPStatus.OK:
    storage.delete_file(request.params['bucket_name'],
                        request.params['object_id'])


def listed(request, response, storage):
  """Lists the objects of a bucket from startOffset to endOffset."""
  objects.ls(request, response, storage)
  first, end = (request.query.get(name, [''])[0]
                for name in ('startOffset', 'endOffset'))
  if response.status == http.HTTPStatus.OK and (first or end):
    found = json.loads(response._content)
    found['items'] = [x for x in found['items'] if x['name'] >= first and (
        not end or x['name'] < end)]
    response.json(found)


def guarded(method, handler):
  """Returns a handler that refuses what the account may not do.

  It also keeps to the conditions on generations, which tensorstore sets.
  """
  of_bucket = handler in (buckets.get, buckets.patch, buckets.delete)

  def handle(request, response, storage):
    name = request.params.get('bucket_name')
    if name == ('objects' if of_bucket else method != 'GET' and 'readonly'):
      response.status = http.HTTPStatus.FORBIDDEN
      response.json({'error': {
          'code': 403, 'message': f'the account may not {method} this'}})
      return
    wanted, unwanted = (request.query.get(f'ifGeneration{which}', [None])[0]
                        for which in ('Match', 'NotMatch'))
    with LOCK:
      now = generation(request, storage)
      if wanted not in (None, now):
        response.status = http.HTTPStatus.PRECONDITION_FAILED
      elif unwanted == now:
        response.status = http.HTTPStatus.NOT_MODIFIED
      else:
        (listed if handler is objects.ls else handler)(
            request, response, storage)
      response['x-goog-generation'] = generation(request, storage)
  return handle


def generation(request, storage):
  """Returns the number of the version of an object; '0': there is none."""
  name = request.params.get('object_id') or request.query.get('name', [''])[0]
  try:
    return storage.get_file_obj(
        request.params.get('bucket_name'), name)['generation']
  except exceptions.NotFound:
    return '0'


class Handler(server.RequestHandler):
  """Counts what changes objects, and may kill a process before one of them."""

  writes, victim = 0, None  # (pid, number of the request)

  def do_GET(self):
    if self.path.startswith('/kill/'):
      *_, pid, after = self.path.split('/')
      Handler.victim = int(pid), Handler.writes + int(after)
      self.path = '/'
    super().do_GET()

  def _count(self):
    Handler.writes += 1
    if Handler.victim and Handler.victim[1] == Handler.writes:
      with contextlib.suppress(ProcessLookupError):
        os.kill(Handler.victim[0], signal.SIGKILL)

  def do_POST(self):
    self._count()
    super().do_POST()

  def do_PUT(self):
    self._count()
    super().do_PUT()

  def do_DELETE(self):
    self._count()
    super().do_DELETE()


def serve(port):
  """Answers until the process is killed."""
  server.HANDLERS = tuple(
      (pattern, {method: guarded(method, handler)
                 for method, handler in handlers.items()})
      for pattern, handlers in [(_MOVE, {'POST': move}), *server.HANDLERS])
  storage = server.Storage(use_memory_fs=True)
  for name in BUCKETS:
    buckets.create_bucket(name, storage)
  http.server.ThreadingHTTPServer(('127.0.0.1', port), lambda *args: Handler(
      storage, *args)).serve_forever()


def names(url, prefix):
  """Returns the names of the objects of 'bucket' that begin so."""
  with urllib.request.urlopen(
      f'{url}/storage/v1/b/bucket/o?prefix={prefix}') as answer:
    return [found['name'] for found in json.load(answer)['items']]


def read(url, name):
  """Returns the contents of an object of 'bucket'."""
  with urllib.request.urlopen(f'{url}/bucket/{name}') as answer:
    return answer.read()


def write(url, name, contents):
  """Replaces an object of 'bucket'."""
  urllib.request.urlopen(
      f'{url}/upload/storage/v1/b/bucket/o?uploadType=media&name={name}',
      contents).close()


def kill(url, pid, writes):
  """Has a process killed before it changes so many further objects."""
  urllib.request.urlopen(f'{url}/kill/{pid}/{writes}').close()


@contextlib.contextmanager
def running(port):
  """Yields (process, environment in which gs:// means the stand-in)."""
  url = f'http://127.0.0.1:{port}'
  with subprocess.Popen([sys.executable, __file__, str(port)],
                        stderr=subprocess.DEVNULL) as process:
    try:
      for _ in range(300):
        with contextlib.suppress(OSError):
          urllib.request.urlopen(url).close()
          break
        time.sleep(0.1)
      yield process, {
          'STORAGE_EMULATOR_HOST': url, 'TENSORSTORE_GCS_HTTP_URL': url,
          # It asks for the kind of bucket by gRPC.
          'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false'}
    finally:
      process.kill()


if __name__ == '__main__':
  serve(int(sys.argv[1]))
