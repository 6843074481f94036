"""No script, command or example of the pages has stopped working.

Scripts in benchmarks/ are run with their smallest arguments; what takes longer
is in tests/long/test_benchmarks.py. Commands are parsed and their values are
checked, but nothing is trained.
"""

import ast
import contextlib
import importlib
import io
import itertools
import json
import os
import pathlib
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import time
import types

import command
import launch_commands
import mini_imagenet_fake
import pytest
from conftest import FAST_COMPILES, ROOT

from launch import local, preflight
from mtl_jax import algorithms, heads, main
from mtl_jax.adapt import __main__ as adapt_command
from mtl_jax.config import __main__ as config_command
from mtl_jax.config import check, flags, load_config
from mtl_jax.data import __main__ as data_command
from mtl_jax.data import sources
from mtl_jax.errors import UserError
from mtl_jax.ntk import __main__ as ntk_command
from mtl_jax.ntk.checks import check as checks
from mtl_jax.report import __main__ as report_command
from mtl_jax.run import workdir

# Of an environment with PyTorch and qpth.
PEER_PYTHON = os.environ.get('MTL_JAX_PEER_PYTHON', sys.executable)
# (script, smallest arguments, what must have been printed). Paths are relative
# to the folder that the script runs in.
SMALLEST = [
    ('build_mini_imagenet', ['files', 'made'], 'the same store from all'),
    ('calibration',
     ['--checkpoint=runs/glyphs/mtl', '--heads', 'centroid', '--shots=3',
      '--queries=2', '--tasks=2'],
     '| centroid | 3 | '),
    ('fuzz_config',
     ['--workers=0', '--processes=0', '--seed=1', '--only', '4', '7', '10'],
     '3 cases, 0 run, 3 refused, 0 stopped, 0 long, 0 fault'),
    ('heads',
     ['--only=logistic', '--rounds=1', '--repeats=1', '--tasks=2',
      '--peers=peers',
      f'--peer_python={sys.executable}'],
     'peer  100.000 ms per task'),
    ('imaml',
     ['--networks=kinks', '--l2=10', '--steps=1', '--data=glyphs/tiny',
      '--out=imaml.png'],
     '| kinks | 10 | 1 |'),
    ('independent',
     ['--only', 'anil', '--size=16', '--width=2',
      f'--peer_python={PEER_PYTHON}'],
     '| anil | episode |'),
    ('layers',
     ['--only=layers', '--rows=1', '--images=2', '--repeats=1'],
     'BatchNorm (2, 28, 28, 64)'),
    ('memory', ['run', sys.executable, '-c', 'pass'], ' -c pass` | '),
    ('meta_test',
     ['--checkpoint=runs/glyphs/mtl', '--tasks=2', '--queries=1',
      '--peer_tasks=1', '--rounds=1', '--peers=peers',
      f'--peer_python={sys.executable}'],
     ' s, the whole command; peer 0 s, from 1 tasks; x'),
    ('method_steps',
     ['--methods=protonet', '--choices=loop', '--data=glyphs/tiny',
      '--width=4', '--repeats=1', '--out=steps.json'],
     '| protonet | loop |'),
    ('ntk',
     ['--points=20', '--depth=2', '--dims', '3', '--repeats=1'],
     '20 points of 3'),
    ('processes',
     ['--ways', '1x1-jit', '--steps=2', '--config.data.name=glyphs/tiny',
      '--config.train.ways=5', '--config.model.width=4', '--out=processes.png'],
     '| 1x1-jit | '),
    ('reproduce',
     ['--scale=cpu', '--only=glyphs/anil_5shot_seed0'],
     '0 trainings are left'),
    ('search',
     ['--benchmarks=glyphs', '--methods=protonet', '--share=0.0004'],
     '| glyphs | protonet | learning_rate 0.001: '),
    ('seeds',
     ['--seeds=0,1', '--steps=1', '--config.data.name=glyphs/tiny',
      '--config.model.width=4', '--config.train.ways=5'],
     '| 2 | side by side |'),
    ('serve',
     ['--checkpoint=runs/glyphs/mtl', '--starts=1', '--images=3'],
     '| median | '),
    ('start_up',
     ['--starts=0', '--config.data.name=glyphs/tiny', '--config.model.width=4',
      '--config.train.ways=5', '--config.train.epoch_tasks=4',
      '--config.train.max_epochs=1', '--config.optimizer.decay_epochs=1',
      '--config.validation.tasks=2', '--config.eval.tasks=2',
      '--config.eval.baselines=False'],
     '| first | '),
    ('svm_optimum',
     ['runs/glyphs/mtl', '--shots=2', '--tasks=1', '--reference=1'],
     '| runs/glyphs/mtl | 8 | '),
    ('torch_weights',
     ['--networks=conv4_32', '--data=glyphs/tiny', '--images=2', '--tasks=2',
      f'--peer_python={PEER_PYTHON}'],
     '| conv4_32 | '),
    # tests/long/test_benchmarks.py ends runs.
    ('kills', ['--kills=0', '--folder=kills'], '0 times ended'),
    ('tiered_size', ['--per_class=1', 'sized', '--places'],
     '| data build, layout d | 608 |'),
    ('train_step',
     ['--only=mtl, conv4, 28x28x1', '--rounds=1', '--repeats=1',
      '--against=peers', f'--peer_python={sys.executable}'],
     ' | 200.0 | '),
    ('unequal_support',
     ['--checkpoint=runs/glyphs/mtl', '--heads', 'centroid', '--growths=2',
      '--queries=1', '--tasks=2'],
     '| centroid | '),
]
SCRIPTS = sorted(path.stem for path in ROOT.glob('benchmarks/*.py'))
PAGES = {name: (ROOT / name).read_text(encoding='utf-8') for name in (
    'README.md', 'CONTRIBUTING.md',
    *sorted(f'docs/{path.name}' for path in ROOT.glob('docs/*.md')))}
EXAMPLE = re.compile(r'```python\n(.*?)```', re.S)
COMMAND = re.compile(
    r'(\S*python[\d.]*|\S*pip|mtl-jax\S*|make|git|bash|sh|\S*/\S+\.sh|'
    f'{"|".join(launch_commands.PROGRAMS)}) ')


@pytest.fixture
def home(tmp_path, monkeypatch):
  """The folder that the commands run in; scripts can be imported.

  `birds` is the folder of images that pages name as an example.
  """
  (tmp_path / 'configs').symlink_to(ROOT / 'configs')
  (tmp_path / 'birds').mkdir()
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(ROOT / 'benchmarks')
  return tmp_path


@pytest.fixture(scope='module')
def launched(tmp_path_factory):
  """What launch/fake_devices.sh printed, and the workdir of its run."""
  path = tmp_path_factory.mktemp('launched') / 'run'
  # The programs are those of the run in test_scoring.py: compiled once.
  given = command.arguments(
      path, config__train__max_epochs=1, config__eval__baselines=True,
      config__validation__tasks=20, config__augment__operations='')
  done = subprocess.run(
      [ROOT / 'launch/fake_devices.sh', '2', *given], cwd=ROOT, text=True,
      capture_output=True, timeout=300, env={
          **os.environ, 'XLA_FLAGS': FAST_COMPILES, 'PYTHON': sys.executable,
          'PYTHONPATH': str(ROOT)})
  assert done.returncode == 0, done.stderr
  return done.stdout, path


# --- The scripts in benchmarks/. ---


def test_every_script_has_smallest_arguments():
  assert {name for name, *_ in SMALLEST} == set(SCRIPTS)


@pytest.mark.parametrize('name, arguments, expected', SMALLEST, ids=[
    ' '.join([name, arguments[0]]) for name, arguments, _ in SMALLEST])
def test_a_script_runs(name, arguments, expected, home, monkeypatch, capfd,
                       request):
  module = importlib.import_module(name)
  if name in PREPARED:
    PREPARED[name](module, home, monkeypatch, request)
  assert not module.main(arguments)
  printed = capfd.readouterr().out
  assert expected in printed
  assert 'nan' not in printed


def test_the_launch_script_trains_on_as_many_devices_as_it_is_told(launched):
  assert ', 2 x cpu' in launched[0].splitlines()[0]
  assert json.loads((launched[1] / 'test.json').read_text())['num_tasks'] == 10


def prepare_mini_imagenet(module, home, monkeypatch, request):
  """Writes a counterfeit, which is small in this process alone."""
  mini_imagenet_fake.shrink(monkeypatch.setattr)
  mini_imagenet_fake.write_zips(home / 'files')

  def build_here(files, folder):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
      module.build(files, folder)
    return printed.getvalue()

  monkeypatch.setattr(module, 'build_apart', build_here)


def prepare_peers(module, home, monkeypatch, request):
  """Writes peers that need no other libraries."""
  (home / 'peers').mkdir()
  for name in ('svm_head.py', 'logistic_head.py', 'mtl_step.py',
               'meta_test.py'):
    (home / 'peers' / name).write_text(
        'print(\'{"seconds": 0.2, "tasks": 2}\')\n')


def prepare_peer(*libraries):
  """Returns what skips a script where its peer has no libraries."""
  def prepare(module, home, monkeypatch, request):
    if subprocess.run([PEER_PYTHON, '-c', f'import {", ".join(libraries)}'],
                      capture_output=True).returncode:
      pytest.skip(f'no {" and ".join(libraries)} in $MTL_JAX_PEER_PYTHON')
  return prepare


def prepare_finished_run(module, home, monkeypatch, request):
  """Makes a run that the script need not train again."""
  path = home / 'runs/glyphs/mtl'
  shutil.copytree(request.getfixturevalue('launched')[1], path)
  (path / 'cost.json').write_text('{"minutes": 1, "memory": 1}')


def prepare_meta_test(*given):
  """Makes a run to test, and the peer."""
  prepare_finished_run(*given)
  prepare_peers(*given)


def prepare_processes(module, home, monkeypatch, request):
  """Trains within this process, which counts its CPU already."""
  monkeypatch.setattr(module, 'run_apart', lambda _, flags: main.main([
      x for x in flags if 'cpu_devices' not in x]))


def prepare_reproduce(module, home, monkeypatch, request):
  """Lets a finished run take the place of a training."""
  path = request.getfixturevalue('launched')[1]
  of_run = module.cells.of_run
  monkeypatch.setattr(module.cells, 'of_run', lambda path: [
      r | {'cell': r['cell'] | {'shots': 5}} for r in of_run(path)])
  monkeypatch.setattr(module, 'train', lambda training, to, deadline: bool(
      shutil.copytree(path, to)))
  monkeypatch.setattr(module, 'cost_of', lambda *_: {'flops_per_step': 1.})


def prepare_search(module, home, monkeypatch, request):
  """Makes a trial small."""
  config_of = module.config_of
  def tiny(*args):
    config = config_of(*args)
    config.data.name, config.model.width = 'glyphs/tiny', 4
    config.validation.update({'tasks': 2, 'queries': 2})
    config.train.update({'ways': 5, 'meta_batch': 2, 'epoch_tasks': 4})
    return config
  monkeypatch.setattr(module, 'config_of', tiny)
  monkeypatch.setattr(module, 'rates_of', lambda *names: (1e-3,))
  monkeypatch.setattr(module, 'FOURTH', {'protonet': {'train.shots': 2}})


PREPARED = {'processes': prepare_processes,
            'build_mini_imagenet': prepare_mini_imagenet,
            'heads': prepare_peers, 'train_step': prepare_peers,
            'independent': prepare_peer('torch', 'qpth'),
            'torch_weights': prepare_peer('torch', 'safetensors'),
            'reproduce': prepare_reproduce, 'search': prepare_search,
            'calibration': prepare_finished_run,
            'meta_test': prepare_meta_test,
            'serve': prepare_finished_run,
            'svm_optimum': prepare_finished_run,
            'unequal_support': prepare_finished_run}


@pytest.mark.parametrize('scale', ('cpu', 'gpu'))
def test_the_commands_of_all_cells_are_valid(scale, home):
  module = importlib.import_module('reproduce')
  trainings = [t for t in module.trainings(scale) if not t.seed]
  cells = {(t.benchmark, t.method, k) for t in trainings for k in t.shots}
  methods = algorithms.METHODS if scale == 'cpu' else ('mtl', 'metaoptnet')
  assert cells >= set(itertools.product(
      ('mini_imagenet', 'tiered_imagenet', 'cifar_fs', 'fc100'), methods,
      (1, 5)))
  for training in trainings:
    check_main(training.flags(home / 'run'), home)


@pytest.mark.parametrize('name', [
    path.name for path in sorted((ROOT / 'benchmarks').glob('*.py'))
    if 'from launch' in path.read_text()])
def test_a_script_finds_what_is_not_installed(name, tmp_path):
  """Fails if `python benchmarks/..` needs a PYTHONPATH that no page names."""
  env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
  result = subprocess.run(
      [sys.executable, ROOT / 'benchmarks' / name, '--help'], cwd=tmp_path,
      env=env, capture_output=True, text=True)
  assert result.returncode == 0, result.stderr


def test_a_training_that_was_refused_is_no_cell(home):
  """Fails if the test of an earlier run in its folder is taken for its own."""
  module = importlib.import_module('reproduce')
  path = home / 'run'
  path.mkdir(parents=True)
  (path / 'test.json').write_text('{}')
  training = module.Training('cpu', 'glyphs', 'mtl', 0, (5,), ('--nothing=1',))
  with pytest.raises(SystemExit, match='glyphs/mtl_5shot_seed0 ended with exit '
                     'code 2: see'):
    module.train(training, path, time.monotonic() + 100)


def test_bad_folders_of_cells_get_one_line(home, capsys):
  module = importlib.import_module('reproduce')
  (home / 'file').write_text('x')
  assert module.main(['--list', f'--out={home}/file/results']) == 2
  line, = capsys.readouterr().err.splitlines()
  assert line.startswith('reproduce.py: ') and f'{home}/file' in line


@pytest.mark.parametrize('flags, lines', [
    ([], ['0 trainings are left.', 'Others need data that are not at hand: '
          'build mini_imagenet, tiered_imagenet, cifar_fs, fc100 by']),
    (['--prepare', '--only=fc100/mtl_5shot'],
     ['fc100/mtl_5shot_seed0: data not at hand']),
    (['--list', '--only=fc100/metaoptnet_1shot'],
     ['fc100 metaoptnet 1-shot seed 0: data not at hand',
      'fc100 metaoptnet 5-shot seed 0: data not at hand', '0 trainings are',
      'Others need data that are not at hand: build fc100 by'])],
    ids=['all', 'prepare', 'list'])
def test_cells_without_data_are_named(flags, lines, home, monkeypatch, capsys):
  """Fails if all seems done where nothing could be."""
  module = importlib.import_module('reproduce')
  monkeypatch.setattr(module, 'at_hand', lambda name: False)
  assert module.main(['--scale=gpu', f'--out={home}/results',
                      f'--runs={home}/runs', *flags]) == 0
  printed = [line for line in capsys.readouterr().out.splitlines()
             if not line.startswith(' ')]
  assert len(printed) == len(lines)
  for line, start in zip(sorted(printed), sorted(lines), strict=True):
    assert line.startswith(start)


def test_the_record_of_a_cell_is_what_the_run_says(launched, home):
  module = importlib.import_module('reproduce')
  path = pathlib.Path(shutil.copytree(launched[1], home / 'run'))
  training = module.Training('cpu', 'mini_imagenet', 'mtl', 0, (5,))
  module.write_records(training, path, home / 'results', home / 'runs')
  file, = (home / 'results').rglob('*.json')
  record = json.loads(file.read_text())
  result = json.loads((path / 'test.json').read_text())
  config = json.loads((path / 'config.json').read_text())
  assert record['test']['accuracy'] == result['accuracy']
  answers = result['ways'] * result['queries'] * result['num_tasks']
  assert sum(record['test']['correct']) / answers == pytest.approx(
      result['accuracy'])
  c, training = config['train'], record['training']
  assert training['images'] == training['steps'] * c['meta_batch'] * c[
      'ways'] * (c['shots'] + c['queries'])
  assert training['epochs'] == c['max_epochs'] == len(training['curve'])
  assert training['flops_per_step'] > 1e6
  # A first record, which compiles, counts at the pace of the others.
  lines = [json.loads(line) for line in (
      path / 'metrics.jsonl').read_text().splitlines()]
  paces = [c['meta_batch'] / r['tasks_per_second']
           for r in lines if 'tasks_per_second' in r]
  assert training['seconds'] == pytest.approx(
      training['steps'] * statistics.median(paces[1:]))
  assert record['config'] == config


# --- The commands of the pages. ---


def commands_of(text):
  """Returns the commands of a page: those in blocks and those within a line."""
  text = EXAMPLE.sub('', text)
  joined = re.sub(r'\\\n\s*', '', text)
  blocks = re.findall(r'^ {4,}(\S.*)$', joined, re.M)
  for fenced in re.findall(r'^```\w*\n(.*?)^```', joined, re.M | re.S):
    blocks += fenced.splitlines()
  inline = [' '.join(code.split()) for code in re.findall(
      r'`([^`]+)`', re.sub(r'```.*?```', '', text, flags=re.S))]
  return [line.strip() for line in blocks + inline
          if COMMAND.match(line.strip())]


COMMANDS = [pytest.param(line, id=f'{page}-{line[:60]}')
            for page, text in PAGES.items()
            for line in dict.fromkeys(commands_of(text))]


def test_the_commands_of_the_pages_are_found():
  assert commands_of(
      'Text\n\n    make a   # why\n    python -m b \\\n      --c=1 > d\n\n'
      '```\nlaunch/e.sh 2\n```\nand `python\nf.py`, `python`, `mtl_jax/g`.\n'
      '```python\nmake = 1\n```\n') == [
          'make a   # why', 'python -m b --c=1 > d', 'launch/e.sh 2',
          'python f.py']
  assert len(COMMANDS) > 40


@pytest.mark.parametrize('line', COMMANDS)
def test_a_command_is_accepted(line, home, monkeypatch):
  check_command(line, home, monkeypatch)


MAIN = 'python -m mtl_jax.main --config=configs/quickstart.py'
REFUSED = {  # command -> what the error says
    'git status now': 'git',
    'make nothing': 'nothing',
    "pip install -e '.[nothing]'": 'nothing',
    'python -m mtl_jax.nothing': 'nothing',
    'python -m pytest tests/nothing.py': 'tests/nothing.py',
    'python tests/nothing.py': 'tests/nothing.py',
    'python benchmarks/nothing.py': 'benchmarks/nothing.py',
    'python benchmarks/ntk.py --nothing': '^2$',
    'python benchmarks/reproduce.py --nothing': '^2$',
    'launch/nothing.sh 2': 'launch/nothing.sh',
    'launch/fake_devices.sh 0 --config=configs/quickstart.py': "'0'",
    'launch/fake_devices.sh 2 --config=configs/nothing.py': 'not there',
    'sbatch --nothing=1 launch/slurm.sh --config=quickstart': 'nothing',
    'sbatch launch/slurm.sh --config=nothing': 'not there',
    'launch/tpu_pod.sh --name=pod --zone=a -- --config=nothing': 'not there',
    'launch/tpu_pod.sh --name=pod -- --config=quickstart': '--zone is missing',
    'gcloud compute tpus tpu-vm drop pod': 'drop',
    'gcloud compute tpus tpu-vm delete pod --force': '--force',
    'kubectl apply -f launch/nothing.yaml': 'nothing',
    'sed s/a/b/ launch/gke_jobset.yaml': 'YOUR_',
    'python -m mtl_jax.main --config=configs/nothing.py': 'not there',
    f'{MAIN}:nothing': "'nothing': allowed are mtl",
    f'{MAIN} --config.nothing.ways=1': 'config.nothing.ways is unknown',
    f'{MAIN} --config.train.ways=0': 'config.train.ways is 0',
    'python -m mtl_jax.main --mode=evaluate --checkpoint=runs/a '
    '--config.model.width=3': 'config.model.width=64, not 3',
    'python -m mtl_jax.data check': '2 == 0',
    'mtl-jax --config=nothing': 'nothing is not there',
    'mtl-jax-data check': '2 == 0',
    'mtl-jax-nothing x': 'mtl-jax-nothing',
    'pip install nothing': 'nothing',
    'python -m mtl_jax.data list --manual_dir=a': '2 == 0',
    'python -m mtl_jax.data build nothing': "NAME is 'nothing'",
    'python -m mtl_jax.ntk nothing': 'nothing',
    'python -m mtl_jax.ntk bound --nothing=1': 'unrecognized',
    'python -m mtl_jax.ntk bound --depths=1,2': '--depths: three or more',
    'python -m mtl_jax.report a --format=b': "'b': allowed are text",
    'python -m mtl_jax.report a --page=b --format=csv': 'leave one of them out',
    'python -m mtl_jax.adapt --checkpoint=a': '--support or --load_head',
    'python -m mtl_jax.adapt --checkpoint=a --support=b': '--query is required',
    'python -m mtl_jax.adapt --checkpoint=a --support=b --query=c '
    '--head=nothing': "'nothing': allowed are centroid",
    'python -m mtl_jax.config nothing': '2 == 0',
    'python -m mtl_jax.config --config=configs/nothing.py': '2 == 0',
}


@pytest.mark.parametrize('line', REFUSED)
def test_a_command_that_does_not_work_is_refused(line, home, monkeypatch):
  errors = (AssertionError, KeyError, UserError, SystemExit)
  with pytest.raises(errors, match=REFUSED[line]):
    check_command(line, home, monkeypatch)


def check_command(line, home, monkeypatch):
  """Raises an error unless the program of a command accepts its arguments."""
  program, *words = shlex.split(line, comments=True)
  if '>' in words:
    words = words[:words.index('>')]
  if program in launch_commands.PROGRAMS:
    launch_commands.check(program, words, lambda flags: check_main(flags, home))
  elif program in ('python', '.venv/bin/python'):
    if words[:2] == ['-m', 'venv']:
      return
    if words[0] == '-m':
      _, module, *words = words
      MODULES[module](words, home, monkeypatch)
    else:
      check_script(*words)
  elif program == 'make':
    for target in words:
      assert re.search(f'^{target}:', (ROOT / 'Makefile').read_text(), re.M)
  elif program.rpartition('/')[2] == 'pip':
    check_pip(*words)
  elif program.startswith('mtl-jax'):
    MODULES[INSTALLED[program]](words, home, monkeypatch)
  elif program == 'benchmarks/accelerator.sh':
    assert len(words) == {'prepare': 2, 'measure': 3}[words[0]], words
  else:
    assert program == 'launch/fake_devices.sh', program
    check_launch(words, home)


def check_pip(install, *words):
  """The package itself is installed, with an extra that it has."""
  assert install == 'install'
  extra = re.fullmatch(r'(?:\.|mtl_jax-[\d.]+-py3-none-any\.whl)(?:\[(\w+)\])?',
                       words[-1])
  assert extra, words
  assert not extra[1] or f"'{extra[1]}': [" in SETUP


def check_script(path, *words):
  assert (ROOT / path).exists(), path
  if path.startswith('benchmarks/'):
    importlib.import_module((ROOT / path).stem).parse(words)


def check_launch(words, home):
  """The script's first argument is a number of devices."""
  assert re.fullmatch('[1-9][0-9]*', words[0])
  check_main(words[1:], home)


def check_main(words, home, monkeypatch=None):
  """A run that the command names has the config of the quick start."""
  for word in words:
    if word.startswith('--checkpoint='):
      run = home / word.partition('=')[2]
      workdir.claim(run, load_config('configs/quickstart.py'), {})
  parsed = flags.parse(words, workdir.saved_config)
  if parsed.help:
    return
  check.validate(parsed.config)
  if parsed.checkpoint:
    workdir.check(home / parsed.checkpoint, parsed.config, testing=True)


def check_data(words, home, monkeypatch):
  """Runs the command line with functions that do nothing."""
  for name, (low, high, run) in data_command.COMMANDS.items():
    nothing = lambda *names, **options: None
    monkeypatch.setattr(data_command, run.__name__, nothing)
    monkeypatch.setitem(data_command.COMMANDS, name, (low, high, nothing))
  assert data_command.main(words) == 0
  for name in words[1:]:
    if name != 'NAME' and not name.startswith('--'):
      sources.check_name('NAME', name)


def check_ntk(words, home, monkeypatch):
  name, *rest = words
  if name == 'NAME':
    name = 'bound'
  declared, run, _ = ntk_command.COMMANDS[name]
  options, _ = ntk_command.parse(name, declared, rest)
  module = importlib.import_module(run.__module__)
  if hasattr(module, 'settle'):
    module.settle(options)
  else:
    checks.settle(declared, options)


def check_adapt(words, home, monkeypatch):
  head = adapt_command.parse(words).head
  assert head in (None, 'own') or heads.find(head)


def check_report(words, home, monkeypatch):
  assert report_command.parse(words).runs


def check_config(words, home, monkeypatch):
  assert config_command.main(words) == 0


def check_local(words, home, monkeypatch):
  check_main(local.parse(words).flags, home)


def check_pytest(words, home, monkeypatch):
  for word in words:
    assert '/' not in word or (ROOT / word).exists(), word


SETUP = (ROOT / 'setup.py').read_text()
INSTALLED = dict(re.findall(r"'(mtl-jax\S*) = ([\w.]+?)(?:\.__main__)?:main'",
                            SETUP))  # command -> module
def check_preflight(words, home, monkeypatch):
  preflight.parse(words)


MODULES = {
    'mtl_jax.main': check_main, 'mtl_jax.data': check_data,
    'mtl_jax.ntk': check_ntk, 'mtl_jax.adapt': check_adapt,
    'mtl_jax.report': check_report, 'mtl_jax.config': check_config,
    'launch.preflight': check_preflight, 'launch.local': check_local,
    'pytest': check_pytest}


# --- The examples in Python. ---


EXAMPLES = [pytest.param(text, id=f'{page}-{i}')
            for page, content in PAGES.items()
            for i, text in enumerate(EXAMPLE.findall(content))]


def test_the_examples_are_found():
  assert len(EXAMPLES) >= 8


@pytest.mark.parametrize('text', EXAMPLES)
def test_the_names_of_an_example_exist(text):
  """It does not compile, or names what is in no module."""
  if 'import tensorflow as' in text:
    pytest.importorskip('tensorflow')
  check_names(text)


@pytest.mark.parametrize('text', (
    'import mtl_jax.nothing', 'from mtl_jax import nothing', 'a b',
    'from mtl_jax.data import store\nstore.nothing()'))
def test_an_example_that_does_not_work_is_refused(text):
  with pytest.raises((ImportError, AttributeError, SyntaxError)):
    check_names(text)


def check_names(text):
  """Imports what a text imports, and looks up what it takes of modules."""
  tree = ast.parse(text)
  imports = [node for node in ast.walk(tree)
             if isinstance(node, ast.Import | ast.ImportFrom)]
  names = {}
  exec(compile(ast.Module(imports, []), 'example', 'exec'), names)
  for node in ast.walk(tree):
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
      if isinstance(names.get(node.value.id), types.ModuleType):
        getattr(names[node.value.id], node.attr)
