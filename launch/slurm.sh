#!/usr/bin/env bash
# Runs mtl_jax.main as the tasks of a Slurm job, and again after preemption.
#
#   sbatch --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 launch/slurm.sh \
#     --config=quickstart --config.train.meta_batch=16 --workdir=/shared/run
#
# One task per GPU: JAX gives task i of a node the i-th GPU of that node. On
# nodes without GPUs it is one task per node (the default). The arguments of the
# script are flags of mtl_jax.main; the workdir is a folder that all nodes see.
# Options of sbatch replace the lines below. Environment:
#   PYTHON        the Python that has mtl_jax; default: python
#   SETUP         a file to source first, such as one that loads modules
#   MAX_RESTARTS  how often the job may start again; default: 20
#   SRUN_OPTIONS  further options of srun, separated by spaces
#SBATCH --job-name=mtl_jax
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
# To the tasks, which save and end; not to this shell, which waits for them.
#SBATCH --signal=TERM@120
set -euo pipefail

# How mtl_jax.main ends after SIGTERM, and when another process is gone.
readonly PREEMPTED=75 LOST=76
fail() { echo "slurm.sh: $1" >&2; exit "${2:-2}"; }

[[ -n "${SLURM_JOB_ID:-}" ]] || fail \
  "this is no Slurm job: start it by sbatch launch/slurm.sh --config=..."
[[ $# -gt 0 ]] || fail \
  "no flags: give those of mtl_jax.main, such as --config=quickstart"
max_restarts=${MAX_RESTARTS:-20}
[[ $max_restarts =~ ^[0-9]+$ ]] || fail \
  "MAX_RESTARTS is '$max_restarts': it must be a number, such as 20"
if [[ -n "${SETUP:-}" ]]; then
  [[ -r $SETUP ]] || fail "SETUP is '$SETUP', which cannot be read"
  set +u  # such files rarely expect it
  # shellcheck source=/dev/null
  source "$SETUP"
  set -u
fi
python=${PYTHON:-python}
command -v "$python" > /dev/null || fail \
  "PYTHON is '$python', which is not there: name the one that has mtl_jax"

# Slurm signals this shell too when it ends the job by itself.
trap 'echo "slurm.sh: Slurm ends the job; the tasks save"' TERM
restarts=${SLURM_RESTART_COUNT:-0}
echo "slurm.sh: job $SLURM_JOB_ID, ${SLURM_NTASKS:-1} tasks on" \
  "${SLURM_JOB_NODELIST:-this node}, restart $restarts of $max_restarts"
read -ra options <<< "${SRUN_OPTIONS:-}"
# A task that ends first must not take the others with it while they save.
srun --kill-on-bad-exit=0 --wait=300 ${options[@]+"${options[@]}"} \
  "$python" -m mtl_jax.main "$@" &
step=$!
while true; do  # a signal ends `wait`, but not the step
  code=0
  wait "$step" || code=$?
  kill -0 "$step" 2> /dev/null || break
done

((code == PREEMPTED || code == LOST)) || exit "$code"
# A job that Slurm cancels or requeues is no longer running.
state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T || true)
[[ $state == RUNNING ]] || exit "$code"
((restarts < max_restarts)) || fail "stopped before its end, after \
$restarts restarts: the same sbatch command resumes" "$code"
echo "slurm.sh: stopped before its end; the job is queued again and resumes"
scontrol requeue "$SLURM_JOB_ID"
