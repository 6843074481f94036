#!/usr/bin/env bash
# Runs mtl_jax.main on all hosts of a TPU VM, and deletes the VM afterwards.
#
#   launch/tpu_pod.sh --name=NAME --zone=ZONE --type=TYPE [options] -- FLAGS
#
# FLAGS are those of mtl_jax.main, without --workdir. It creates the VM unless
# it exists, installs the package, copies the data, runs on all hosts, shows
# the log, copies the workdir back, and deletes the VM. A VM that existed before
# is not deleted. A VM that is preempted is created again, and the run resumes.
# Where a step fails, and at Ctrl-C, a VM that was created is deleted as well.
#
#   --name=NAME          of the VM
#   --zone=ZONE          such as us-west4-a
#   --type=TYPE          accelerator, such as v5litepod-16; to create the VM
#   --version=VERSION    software of the VM; default: the one for the type
#   --project=PROJECT    default: that of gcloud
#   --spot               a cheaper VM that can be preempted at any time
#   --queued             waits for the VM in a queue (a queued resource)
#   --package=PACKAGE    a wheel, or git+https://...; default: the wheel in dist
#   --data=DATA          built data sets: a local folder or gs://...
#   --mount_data         mounts gs://... (by gcsfuse) instead of copying it
#   --workdir=WORKDIR    gs://..., or a folder of the VM; default: runs/NAME
#   --results=FOLDER     gets the workdir; default: runs/NAME; empty: no copy
#   --restarts=N         after preemptions; default: 20
#   --poll=SECONDS       between two looks at the VM; default: 30
#   --keep               leaves the VM running, whatever happens
#   --delete             deletes also a VM that existed before
#   --dry_run            prints the commands and calls none
#   --help
#
# Exit code: 0 at the end of the run; 2 for wrong options; 130 after Ctrl-C;
# 75 where it was preempted too often; else that of the run or of gcloud.
set -euo pipefail

# How mtl_jax.main ends after SIGTERM, and when another process is gone.
readonly PREEMPTED=75 LOST=76
readonly RUN=mtl_jax_run DATA=mtl_jax_data ENVIRONMENT=mtl_jax_env
readonly LABEL=mtl_jax=$$-$RANDOM$RANDOM  # of what this start creates

name='' zone='' type='' version='' project='' package='' data=''
workdir='' results='?' restarts=20 poll=30
spot='' queued='' mount_data='' keep='' delete='' dry_run=''
flags=()

# What is being done; whether the VM is of this start (no, maybe, yes, before);
# whether it was there; whether a run is on it; what is waited for.
stage='' created=no was_ready='' running='' interrupted='' child='' state=''

refuse() { echo "tpu_pod.sh: $1" >&2; exit 2; }
say() { echo "tpu_pod.sh: $1" >&2; }

quote() {  # words for a shell, as readable as they can be
  local word apostrophe="'" escaped="'\\''"
  for word; do
    if [[ $word =~ [^-A-Za-z0-9_=./:,@+%] || -z $word ]]; then
      word="'${word//$apostrophe/$escaped}'"
    fi
    printf '%s ' "$word"
  done
}

parse() {
  while (($#)); do
    case $1 in
      --name=*) name=${1#*=} ;;
      --zone=*) zone=${1#*=} ;;
      --type=*) type=${1#*=} ;;
      --version=*) version=${1#*=} ;;
      --project=*) project=${1#*=} ;;
      --package=*) package=${1#*=} ;;
      --data=*) data=${1#*=} ;;
      --workdir=*) workdir=${1#*=} ;;
      --results=*) results=${1#*=} ;;
      --restarts=*) restarts=${1#*=} ;;
      --poll=*) poll=${1#*=} ;;
      --spot) spot=yes ;;
      --queued) queued=yes ;;
      --mount_data) mount_data=yes ;;
      --keep) keep=yes ;;
      --delete) delete=yes ;;
      --dry_run) dry_run=yes ;;
      --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "$0"; exit 0 ;;
      --) shift; flags=("$@"); break ;;
      *) refuse "$1 is no option; flags of mtl_jax.main follow after --; \
--help lists the options" ;;
    esac
    shift
  done
}

check() {
  [[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || refuse "--name is '$name': \
it must begin with a letter and hold a-z, 0-9 and -, such as pod"
  [[ -n $zone ]] || refuse '--zone is missing, such as --zone=us-west4-a'
  [[ $restarts =~ ^[0-9]+$ ]] || refuse "--restarts is '$restarts': it must be \
a number, such as 20"
  [[ $poll =~ ^[0-9]+$ ]] || refuse "--poll is '$poll': it must be a number of \
seconds, such as 30"
  ((${#flags[@]})) || refuse 'there are no flags of mtl_jax.main: give them \
after --, such as -- --config=quickstart'
  local flag
  for flag in "${flags[@]}"; do
    [[ $flag != --workdir* ]] || refuse "$flag stands after --: give it before"
  done
  [[ -z $keep || -z $delete ]] || refuse '--keep and --delete: only one of them'
  [[ -z $mount_data || $data == gs://* ]] || refuse "--mount_data: --data is \
'$data', but only gs://... can be mounted"
  [[ -z $data || $data == gs://* || -n $(ls -A "$data" 2> /dev/null) ]] ||
    refuse "--data is '$data': it must be gs://... or a folder with files"
  workdir=${workdir:-runs/$name}
  [[ $results != '?' ]] || results=runs/$name
  [[ -z $spot || $workdir == gs://* || $restarts == 0 ]] || refuse "--workdir \
is $workdir, on a disk that is lost when a spot VM is preempted: give \
gs://..., or --restarts=0"
  check_package
  if [[ -z $version ]]; then
    case $type in
      v5litepod-*) version=v2-alpha-tpuv5-lite ;;
      v5p-*) version=v2-alpha-tpuv5 ;;
      v6e-*) version=v2-alpha-tpuv6e ;;
      *) version=tpu-ubuntu2204-base ;;
    esac
  fi
  [[ -n $dry_run ]] || command -v gcloud > /dev/null || refuse \
    'gcloud is not there: install the Google Cloud CLI, then gcloud auth login'
}

check_package() {
  [[ $package != git+* ]] || return 0
  if [[ -z $package ]]; then
    local wheels=("$(dirname "$0")"/../dist/mtl_jax-*.whl)
    ((${#wheels[@]} == 1)) || refuse "dist has ${#wheels[@]} wheels of \
mtl_jax: name one by --package, or run make wheel, which leaves one"
    package=${wheels[0]}
  fi
  [[ -f $package || -z $dry_run ]] || package=WHEEL
  [[ -f $package || -n $dry_run ]] || refuse "--package is '$package', which \
is not there: write a wheel by make wheel, or give git+https://..."
}

# --- Commands of gcloud. ---

call() {  # runs gcloud so that a signal ends the wait, not the command
  local code=0 line
  line=$(quote gcloud "$@")
  if [[ -n $dry_run ]]; then
    echo "${line% }" >&3
    return 0
  fi
  echo "+ $line" >&2
  gcloud "$@" < /dev/null &
  child=$!
  wait "$child" || code=$?
  child=''
  return "$code"
}

tpu() {  # a command on TPUs: group, verb, arguments
  local where=("--zone=$zone")
  [[ -z $project ]] || where+=("--project=$project")
  call compute tpus "$@" "${where[@]}" --quiet
}

on() {  # a command on workers: 0 or all
  tpu tpu-vm ssh "$name" "--worker=$1" "--command=$2"
}

copy() { tpu tpu-vm scp --recurse "$@"; }

thrice() {  # a command that the network or a VM that is new may make fail
  "$@" || { pause "$poll"; "$@"; } || { pause "$poll"; "$@"; }
}

look() {  # sets `state`: empty if NAME is not there, unknown if none can tell
  local field=state line
  state=''
  [[ $1 == tpu-vm ]] || field=state.state
  if ! tpu "$1" list "--format=csv[no-heading](name.basename(),$field)" \
      > "$scratch/list"; then
    state=unknown
    return
  fi
  while read -r line; do
    [[ $line != "$name,"* ]] || state=${line#*,}
  done < "$scratch/list"
}

# --- The life of the VM. ---

kind() { [[ -n $queued ]] && echo queued-resources || echo tpu-vm; }

create() {  # or takes the VM that is there
  stage="looking for $name"
  look tpu-vm
  local vm=$state
  if [[ -n $queued && -z $vm ]]; then look queued-resources; fi
  [[ $state != unknown ]] || return 1
  if [[ $vm == READY ]]; then
    [[ $created == yes ]] || created=before
    say "$name exists and is taken"
    return
  elif [[ -n $state ]]; then
    created=before
    [[ -n $delete ]] || { say "$name exists, but is $state: delete it, or \
start with --delete"; return 2; }
    remove || return 1
  fi
  stage="creating $name"
  [[ -n $type || -n $dry_run ]] || { say "$name does not exist: --type says \
what to create, such as v5litepod-16"; return 2; }
  created=maybe
  local how=("--accelerator-type=$type" "--labels=$LABEL")
  [[ -z $spot ]] || how+=(--spot)
  if [[ -n $queued ]]; then
    tpu queued-resources create "$name" "--node-id=$name" \
      "--runtime-version=$version" "${how[@]}" || return
    created=yes
    queue
  else
    tpu tpu-vm create "$name" "--version=$version" "${how[@]}" || return
    created=yes
  fi
}

queue() {  # waits until the queued resource is given; Ctrl-C ends the wait
  local unknown=0
  while true; do
    look queued-resources
    [[ -z $dry_run ]] || return 0
    case $state in
      ACTIVE) return 0 ;;
      unknown) ((++unknown < 20)) || return 1 ;;
      '' | FAILED | SUSPENDING | SUSPENDED | DELETING)
        say "the request is ${state:-gone}"; return 1 ;;
      *) unknown=0 ;;
    esac
    pause "$poll"
  done
}

remove() {  # deletes the VM, and looks whether it is gone
  local try force=()
  [[ -z $queued ]] || force=(--force)
  for try in 1 2 3 4 5 6 7 8 9 10; do
    ((try == 1)) || pause "$poll"
    tpu "$(kind)" delete "$name" ${force[@]+"${force[@]}"} || true
    look "$(kind)"
    [[ -n $state ]] || { created=no; return 0; }
  done
  return 1
}

appeared() {  # whether a failed creation left a VM of this start; 2: unknown
  local try
  for try in 1 2 3; do
    ((try == 1)) || pause "$poll"
    look "$(kind)"
    [[ -n $state && $state != unknown ]] || continue
    tpu "$(kind)" describe "$name" --format=yaml > "$scratch/vm" || continue
    # In a trap, a bare `return` would give the code from before the trap.
    if grep -q "${LABEL#*=}" "$scratch/vm"; then return 0; else return 1; fi
  done
  [[ -z $state ]] || return 2
  return 1
}

pause() {  # sleeps; a signal ends it
  [[ -z $dry_run ]] || return 0
  sleep "$1" &
  child=$!
  wait "$child" || true
  child=''
}

# --- What the workers do. ---

install() {
  stage="installing on $name"
  local what=$package python=$ENVIRONMENT/bin/python
  if [[ $package != git+* ]]; then
    thrice copy "$package" "$name:" --worker=all || return
    what="./$(basename "$package")[tpu,gs]"
  else
    what="mtl_jax[tpu,gs] @ $package"
  fi
  # The VM's own Python is older than 3.11.
  thrice on all "python3 -m pip install --quiet --user uv && \
{ [ -x $python ] || ~/.local/bin/uv venv --quiet --python 3.12 $ENVIRONMENT; } \
&& ~/.local/bin/uv pip install --quiet --python $python \
$(quote "$what")" || return
  [[ -n $data ]] || return 0
  stage="copying data to $name"
  if [[ -n $mount_data ]]; then
    local bucket=${data#gs://}
    local folder=${bucket#*/}
    bucket=${bucket%%/*}
    [[ $folder != "$bucket" ]] || folder=''
    thrice on all "mkdir -p $DATA && { mountpoint -q $DATA || gcsfuse -o ro \
--implicit-dirs ${folder:+$(quote "--only-dir=$folder")}\
$(quote "$bucket")$DATA; }"
  elif [[ $data == gs://* ]]; then
    thrice on all "mkdir -p $DATA && \
gcloud storage rsync --recursive $(quote "$data")$DATA"
  else
    thrice on all "mkdir -p $DATA" || return
    thrice copy "$data"/* "$name:$DATA/" --worker=all
  fi
}

start() {  # leaves the run to the VM: it does not need this connection
  local run
  run="${data:+MTL_JAX_DATA=\$HOME/$DATA }$ENVIRONMENT/bin/python -m \
mtl_jax.main $(quote "${flags[@]}" "--workdir=$workdir")"
  run="$run> $RUN/log.txt 2>&1 & echo \$! > $RUN/pid; wait \$!; \
echo \$? > $RUN/exit_code"
  on all "mkdir -p $RUN; rm -f $RUN/pid $RUN/exit_code; \
nohup bash -c $(quote "$run")> /dev/null 2>&1 < /dev/null & \
until [ -s $RUN/pid ]; do sleep 0.1; done"
}

readonly FOLLOW="tail -n +1 -f --pid=\$(cat $RUN/pid) $RUN/log.txt"
# A minute for the other workers to end, too.
readonly ASK="for i in \$(seq 300); do [ -s $RUN/exit_code ] && break; \
sleep 0.2; done; if [ -s $RUN/exit_code ]; then \
echo mtl_jax_exit \$(cat $RUN/exit_code); \
elif kill -0 \$(cat $RUN/pid); then echo mtl_jax_exit running; \
else echo mtl_jax_exit 137; fi"

train() {  # returns the exit code of the run
  local tries=0 began codes
  stage="starting the run on $name"
  start || return
  running=yes
  while true; do
    stage="the run on $name"
    began=$SECONDS
    on 0 "$FOLLOW" || true
    on all "$ASK" > "$scratch/codes" || echo mtl_jax_exit lost \
      >> "$scratch/codes"
    [[ -z $dry_run ]] || return 0
    codes=$(grep -oE 'mtl_jax_exit [0-9a-z]+' "$scratch/codes" |
      sed 's/.* //' | sort -u | tr '\n' ' ')
    case " $codes" in
      ' 0 ') return 0 ;;
      *" $PREEMPTED "* | " $LOST " | " 0 $LOST ") return "$PREEMPTED" ;;
      *' running '* | *' lost '* | ' ') ;;
      *) codes=${codes#0 }; return "${codes%% *}" ;;
    esac
    # The connection was lost, or the VM.
    ((SECONDS - began < 300)) || tries=0
    ((++tries < 20)) || { stage="the connection to $name"; return 1; }
    pause "$poll"
    look tpu-vm
    [[ $state == READY || $state == unknown ]] || return "$PREEMPTED"
  done
}

fetch() {
  [[ -n $results ]] || return 0
  stage="copying the results of $name"
  [[ -n $dry_run ]] || mkdir -p "$results" || return
  if [[ $workdir == gs://* ]]; then
    thrice call storage rsync --recursive "$workdir" "$results"
  else
    thrice copy "$name:$workdir/*" "$results" --worker=0
  fi
}

# --- From the beginning to the end. ---

run() {
  local restart=0 code failed
  while true; do
    code=0
    { create && was_ready=yes && install && train; } || code=$?
    running=''
    ((code)) || break
    failed=$stage
    taken_away "$code" || { stage=$failed; return "$code"; }
    ((restart++ < restarts)) || { stage="$failed: stopped before its end, \
after $restarts restarts"; return "$PREEMPTED"; }
    [[ $state == READY || $state == unknown ]] || replace || return
    say "restart $restart of $restarts: the run resumes"
  done
  fetch
}

taken_away() {  # whether a step failed because the VM was taken away
  [[ $1 == "$PREEMPTED" || ( $1 != 2 && -n $was_ready ) ]] || return 1
  look tpu-vm
  [[ $1 == "$PREEMPTED" || ( $state != READY && $state != unknown ) ]]
}

replace() {  # removes what is left of a VM; the loop creates it again
  local wait=$poll
  [[ $stage != creating* ]] || wait=$((10 * poll))  # there is none at present
  stage="replacing $name, which is ${state:-gone},"
  [[ $workdir == gs://* ]] || { say "the run was on the disk of $name, which \
is lost: give --workdir=gs://..."; return "$PREEMPTED"; }
  [[ $created != before || -n $delete ]] || { say "$name was there before: \
delete it, then the same command resumes; --delete does both"
    return "$PREEMPTED"; }
  [[ $created != maybe ]] || appeared || created=no
  [[ $created == no ]] || remove || return
  pause "$wait"
}

end_child() {  # gcloud, and what it has started
  local pid=$1 below
  for below in $(pgrep -P "$pid" || true); do end_child "$below"; done
  kill -TERM "$pid" 2> /dev/null || true
}

interrupt() {
  interrupted=$1
  trap '' INT TERM HUP  # nothing stops the deletion
  [[ -z $child ]] || end_child "$child"
  exit "$2"
}

cleanup() {
  local code=$? failed=$stage what='done' left by
  trap '' INT TERM HUP
  trap - EXIT
  set +e
  by="delete it by gcloud compute tpus $(kind) delete $name --zone=$zone\
${project:+ --project=$project}${queued:+ --force}"
  [[ $created != maybe || -n $keep ]] || appeared
  case $? in
    1) created=no ;;
    2) created=unknown ;;
  esac
  if [[ $created == no ]]; then left='no VM of this start is there'
  elif [[ $created == unknown ]]; then
    left="$name may be there and cost money: look, and $by"
  elif [[ -n $keep || ( $created == before && -z $delete ) ]]; then
    [[ -z $interrupted || -z $running ]] || on all "kill -TERM \$(cat $RUN/pid)"
    left="$name is left and costs money: $by"
  elif remove; then left="$name was deleted; nothing is left"
  else
    left="$name COULD NOT BE DELETED and costs money: $by"
    ((code)) || code=1
  fi
  if [[ -n $interrupted ]]; then what="stopped by $interrupted: $failed"
  elif ((code)); then what="failed: $failed (code $code)"
  fi
  [[ -z $dry_run ]] || { what='dry run' left='no command was called'; }
  say "$what; $left"
  rm -rf "$scratch"
  exit "$code"
}

parse "$@"
check
exec 3>&1
scratch=$(mktemp -d)
trap '' PIPE  # `tpu_pod.sh | tee`: Ctrl-C ends tee, too
trap cleanup EXIT
trap 'interrupt INT 130' INT
trap 'interrupt TERM 143' TERM
trap 'interrupt HUP 129' HUP
run
