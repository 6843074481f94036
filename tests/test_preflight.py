"""launch/preflight.py: a program is read right, and what does not fit is said.

The target is a CPU, whose programs have the same form as those of accelerators.
"""

import json

import jax
import jax.numpy as jnp
import own_source
import pytest

from launch import chips, hlo, preflight
from mtl_jax.run import build

CHIP = chips.Chip(flops=1e12, memory=2**30, bandwidth=1e11, links=1e10)
FIELDS = ['--config=glyphs_5shot', '--config.model.width=8',
          '--config.data.name=glyphs/tiny', '--config.train.ways=5',
          '--config.train.meta_batch=4']


@pytest.fixture
def target(monkeypatch):
  """Eight devices of a CPU, as a target of eight chips."""
  monkeypatch.setattr(preflight, 'target', lambda name: preflight.Target(
      name, CHIP, jax.devices('cpu')[:int(name)]))


def run(*argv):
  return preflight.main([*FIELDS, *argv])


def test_the_report_of_a_step(target, tmp_path, capsys):
  assert run('--target=4', '--train_images=240', f'--out={tmp_path}') == 0
  printed = capsys.readouterr().out
  assert 'a step: 4 tasks of 5 ways' in printed and '1 tasks' in printed
  found = json.loads((tmp_path / 'preflight.json').read_text())
  # Gradients and statistics of all devices are averaged: as many numbers as
  # the network has, and some metrics.
  config, _ = preflight.parse([*FIELDS, '--target=4'])
  variables = jax.eval_shape(lambda: build.initial_state(
      config, build.algorithm_of(config, 12), (28, 28, 1))).variables
  size = 4 * sum(x.size for x in jax.tree.leaves(variables))
  reduced = sum(c['size'] for c in found['collectives'])
  assert size <= reduced < size + 100
  assert (tmp_path / 'preflight.png').stat().st_size > 5000


def test_one_chip_says_what_more_would_send(target, tmp_path):
  """Fails if many chips average for nothing where one was compiled for."""
  seconds = []
  for count in ('1', '4'):
    assert run(f'--target={count}', '--train_images=240',
               '--config.parallel.tasks_per_device=1',
               f'--out={tmp_path / count}') == 0
    found = json.loads((tmp_path / count / 'preflight.json').read_text())
    seconds.append({x['chips']: x['seconds'] for x in found['scaling']}[256])
  assert seconds[0] == pytest.approx(seconds[1], rel=0.1)


def test_tasks_that_cannot_be_shared(target, capsys):
  assert run('--target=8', '--train_images=240') == 1
  line, = capsys.readouterr().err.splitlines()
  assert 'meta_batch is 4, which 8 chips' in line


def test_a_chip_with_too_little_memory(target, monkeypatch, capsys):
  monkeypatch.setattr(preflight, 'target', lambda name: preflight.Target(
      name, CHIP._replace(memory=2**18), jax.devices('cpu')[:4]))
  assert run('--target=4', '--train_images=240') == 1
  assert 'a chip needs' in capsys.readouterr().err


@pytest.mark.parametrize('argv, text', [
    ((), '--target is missing'),
    (('--target=v9',), '--target'),
    (('--target=v5e',), 'topology'),
    (('--target=h100:2x2',), 'topology'),
    (('--target=4', '--train_images=-3'), '--train_images'),
    (('--target=4', '--config.train.waze=3'), 'waze'),
    (('--target=4', '--mode=evaluate', '--checkpoint=x'), '--mode is unknown'),
])
def test_wrong_flags_get_one_line(argv, text, capsys):
  assert run(*argv) == 2
  line, = capsys.readouterr().err.splitlines()
  assert text in line


@pytest.mark.parametrize('flag, text', [
    ('--out=/dev/null', '/dev/null'),
    ('--config.parallel.tasks_at_once=3', 'must divide the 2 tasks of a device')
])
def test_what_cannot_be_compiled_or_written_gets_one_line(
    flag, text, target, monkeypatch, capsys):
  monkeypatch.setattr(preflight, 'read', None)  # before minutes of compiling
  assert run('--target=2', '--train_images=240', flag) == 2
  line, = capsys.readouterr().err.splitlines()
  assert text in line


def test_images_of_a_folder_must_be_built_first(target, tmp_path, capsys):
  own_source.write_folder(tmp_path / 'birds')
  assert run('--target=4', '--train_images=66',
             f'--config.data.name={tmp_path}/birds') == 2
  line, = capsys.readouterr().err.splitlines()
  assert 'build it, and leave out --train_images' in line


def test_products_and_traffic_of_matrices():
  """Against what can be counted by hand."""
  lowered = jax.jit(lambda a, b: a @ b).lower(
      jnp.zeros((64, 32)), jnp.zeros((32, 16)))
  program = hlo.read(lowered.compile().as_text())
  assert sum(op.flops for op in program.operations) == 2 * 64 * 32 * 16
  assert sum(op.traffic for op in program.operations) >= 4 * (
      64 * 32 + 32 * 16 + 64 * 16)


def test_a_loop_counts_as_often_as_it_runs():
  step = lambda a, _: (a @ a, None)
  program = hlo.read(jax.jit(
      lambda a: jax.lax.scan(step, a, length=7)[0]).lower(
          jnp.zeros((16, 16))).compile().as_text())
  assert sum(op.flops for op in program.operations) == 7 * 2 * 16**3
  assert not program.unknown_loops
  program = hlo.read(jax.jit(lambda a: jax.lax.while_loop(
      lambda a: a.sum() < 9, lambda a: a @ a, a)).lower(
          jnp.zeros((16, 16))).compile().as_text())
  assert program.unknown_loops == 1


# Lines as of a program for an H100.
GPU = '''HloModule jit_step

%fused (param_0: u8[38400,168,128], param_1: s32[128,1]) -> u8[128,168,128] {
  %param_0 = u8[38400,168,128]{2,1,0} parameter(0)
  %param_1 = s32[128,1]{1,0} parameter(1)
  ROOT %gather = u8[128,168,128]{2,1,0} gather(%param_0, %param_1)
}

ENTRY %main (a: u8[38400,168,128], i: s32[128,1]) -> bf16[128,84,84,64] {
  %a = u8[38400,168,128]{2,1,0} parameter(0)
  %i = s32[128,1]{1,0} parameter(1)
  %x = bf16[128,84,84,64]{3,2,1,0} parameter(2)
  %k = bf16[64,3,3,64]{3,2,1,0} parameter(3)
  %rows = u8[128,168,128]{2,1,0} fusion(%a, %i), kind=kLoop, calls=%fused
  %conv = (bf16[128,84,84,64]{3,2,1,0}, u8[0]{0}) custom-call(%x, %k), @Forward
  %start = f32[1000]{0} all-reduce-start(%g), replica_groups={}
  %done = f32[1000]{0} all-reduce-done(%start)
  %back = (bf16[64,3,3,64]{3,2,1,0}) custom-call(%x, %y), @BackwardFilter
  %y = bf16[128,84,84,64]{3,2,1,0} get-tuple-element(%conv), index=0
}
'''.replace(
    '@', 'dim_labels=b01f_o01i->b01f, custom_call_target=__cudnn$conv').replace(
        'Forward', 'Forward, metadata={op_name="jvp(conv_0)"}').replace(
            'Filter', 'Filter, metadata={op_name="transpose(jvp(conv_0))"}')


def test_what_a_tpu_keeps_on_its_core_moves_only_there_and_back():
  """Fails if a fusion that reads it counts as reading memory."""
  program = hlo.read('''ENTRY %main (x: f32[1000]) -> f32[1000] {
  %x = f32[1000]{0:T(1024)} parameter(0)
  %go = (f32[1000]{0:T(1024)S(1)}, f32[1000]{0:T(1024)}, u32[]{:S(2)}) \
copy-start(%x)
  %there = f32[1000]{0:T(1024)S(1)} copy-done(%go)
  %y = f32[1000]{0:T(1024)S(1)} add(%there, %there)
  %same = f32[1000]{0:T(1024)S(1)} custom-call(%y), \
custom_call_target="ConcatBitcast"
  ROOT %z = f32[1000]{0:T(1024)} multiply(%same, %x)
}
''')
  assert {op.name: op.traffic for op in program.operations} == {
      'there': 4000, 'y': 0, 'z': 8000}


def test_a_convolution_over_padding_has_no_products_there():
  """Fails if a gradient that a TPU states with a wide kernel counts it all."""
  # The gradient of a 1x1 convolution's images: its kernel is the one pixel.
  program = hlo.read('''ENTRY %main (k: f32[1,1,64,160]) -> f32[] {
  %k = f32[1,1,64,160]{3,2,1,0} parameter(0)
  %g = f32[8,42,42,160]{3,2,1,0} parameter(1)
  ROOT %conv = f32[42,42,64,8]{3,2,1,0} convolution(%k, %g), WINDOW
}
'''.replace('WINDOW', 'window={size=42x42 pad=41_41x41_41 rhs_reversal=1x1}, '
           'dim_labels=01bf_o01i->01bf'))
  assert [op.flops for op in program.operations] == [
      2 * 8 * 42 * 42 * 64 * 160]
  same = jax.jit(lambda x, k: jax.lax.conv_general_dilated(
      x, k, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')))
  program = hlo.read(same.lower(jnp.zeros((2, 8, 8, 4)), jnp.zeros(
      (3, 3, 4, 5))).compile().as_text())
  assert sum(op.flops for op in program.operations) == (
      2 * 2 * 8 * 8 * 9 * 4 * 5)


def test_lines_of_an_accelerators_program():
  program = hlo.read(GPU)
  found = {op.name: op for op in program.operations}
  product = 2 * 128 * 84 * 84 * 64 * 3 * 3 * 64
  assert found['conv'].flops == found['back'].flops == product
  # Of a data set of 0.8 GB, the step reads the images that it gathers.
  assert found['rows'].traffic == 2 * 128 * 168 * 128 + 128 * 4
  assert program.collectives == [hlo.Collective('all-reduce', 1, 4000)]


def test_the_slowest_operations_and_the_floor_of_all():
  """Fails if an operation counts twice, or if the floor has other traffic."""
  program = hlo.read(GPU)
  chip = chips.Chip(flops=1e12, memory=1e9, bandwidth=1e9, links=1.)
  *table, last = preflight.roofline(
      preflight.Found(0., 0, 0, 0, 0, program), chip, 2)
  images, kernel = 2 * 128 * 84 * 84 * 64, 2 * 64 * 3 * 3 * 64
  flops = 2 * 128 * 84 * 84 * 64 * 3 * 3 * 64
  moved = 4 * images + 2 * kernel  # convolution and its gradient, in bytes
  assert [line.split(' | ')[0] for line in table[2:]] == ['| conv', '| back']
  total = moved + 2 * 128 * 168 * 128 + 128 * 4 + 2 * 4000
  assert f'one after another: {total / 1e6:.2f} ms' in last
  # BatchNorm of the convolution's result.
  assert f'floor {(moved + 8 * images) / 1e6:.2f} ms' in last
  assert f'all products, {2 * flops / 1e9:.2f},' in last


def test_all_reduce_takes_the_links_and_the_way():
  assert chips.all_reduce_seconds(CHIP, 1, 10**9) == 0
  assert chips.all_reduce_seconds(CHIP, 2, 10**9) == pytest.approx(
      .2, rel=1e-4)
  assert chips.all_reduce_seconds(CHIP, 256, 0) == pytest.approx(64e-6)
