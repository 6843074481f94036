#!/usr/bin/env bash
# Measures training steps on one GPU, ours and PyTorch's, in eight minutes.
#
#   benchmarks/accelerator.sh prepare INPUTS
#   benchmarks/accelerator.sh measure INPUTS OUT
#
# INPUTS is a folder with `peers`, the PyTorch programs to run beside ours, or
# without it for ours alone. `prepare` compiles our steps into INPUTS/cache,
# which takes minutes; it may be run beforehand, on a machine of the same kind.
# `measure` writes OUT/PIECE.jsonl for each piece. A piece that is there is not
# measured again, so the same command goes on where it was stopped.
#
#   PYTHON       of this library (python3)
#   PEER_PYTHON  of PyTorch (python3)
#   SECONDS_LEFT for all pieces (480)
#   IMAGES       of a step (128)
set -euo pipefail

usage() { sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 2; }
[[ $# -ge 2 ]] || usage
what=$1 inputs=$(realpath -m "$2") out=${3:+$(realpath -m "$3")}
[[ $what == prepare || ($what == measure && -n $out) ]] || usage
cd "$(dirname "$0")/.."
python=${PYTHON:-python3} peer=${PEER_PYTHON:-python3} images=${IMAGES:-128}
mkdir -p "$inputs"
export PYTHONPATH=$PWD JAX_COMPILATION_CACHE_DIR=$inputs/cache
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
end=$((SECONDS + ${SECONDS_LEFT:-480}))

# piece NAME COMMAND..: runs it unless it has been; COMMAND prints JSON lines.
piece() {
  local name=$1; shift
  if [[ $what == prepare ]]; then
    echo "compiling $name"
    "$@" > /dev/null
    return
  fi
  local file=$out/$name.jsonl left=$((end - SECONDS))
  if [[ -e $file ]]; then echo "$name: measured before"; return; fi
  if ((left < 20)); then echo "$name: no time left"; return; fi
  mkdir -p "$out"
  if timeout "$left" "$@" > "$file.part" 2> "$out/$name.log"; then
    mv "$file.part" "$file"
    echo "$name: $(tail -n 1 "$file")"
  else
    echo "$name: failed, see $out/$name.log"
  fi
}

[[ $images =~ ^[0-9]*[02468]$ && $images =~ [1-9] ]] || {
  echo "IMAGES is $images: must be an even number above 0" >&2
  exit 2
}

ours() {  # ours NAME PRECISION FLAGS..
  local name=$1 precision=$2; shift 2
  piece "$name" "$python" benchmarks/train_step.py --json --methods=mtl \
    --models=resnet12 --tasks=1 --ways=$((images / 2)) --shots=1 --queries=1 \
    --precisions="$precision" --rounds=1 --repeats=$repeats "$@"
}

theirs() {  # theirs NAME FLAGS..
  local name=$1; shift
  [[ $what == measure && -d $inputs/peers ]] || return 0
  piece "$name" "$peer" "$inputs/peers/mtl_step.py" --device=cuda \
    --images="$images" --repeats=$repeats "$@"
}

if [[ $what == prepare ]]; then repeats=1; else repeats=20; fi
ours ours_bfloat16 bfloat16
ours ours_bfloat16_plain bfloat16 --plain
theirs torch_bfloat16_compiled --precision=bfloat16 --compile=1
theirs torch_bfloat16_eager --precision=bfloat16
ours ours_float32_plain float32 --plain
theirs torch_float32_eager --precision=float32
ours ours_bfloat16_small bfloat16 --sizes=32x32x3
theirs torch_bfloat16_small --precision=bfloat16 --compile=1 --size=32
