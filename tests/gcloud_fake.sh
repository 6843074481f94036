#!/usr/bin/env bash
# Stands in for gcloud. Records its calls in $FAKE/calls and keeps the VM as the
# file $FAKE/tpu-vm (its state, then its label). Workers 0 and 1 are folders, in
# which the commands of ssh really run, with $FAKE/bin before everything else.
#
#   FAIL_AT=POINT     the command at this point fails
#   PREEMPT_AT=POINT  the first command at this point loses the VM
#   HANG_AT=POINT     the command at this point never ends; $FAKE/hangs appears
#   LATE=yes          a creation that fails has created the VM all the same
set -u
echo "$*" >> "$FAKE/calls"
group=$3
all="$*"
case $all in
  'storage rsync '* | *' scp --recurse pod:'*) point=results ;;
  *' list '* | *' describe '* | *' create '* | *' delete '*) point=$4 ;;
  *' scp '*) point=scp ;;
  *'pip install'*) point=install ;;
  *nohup*) point=start ;;
  *tail*) point=follow ;;
  *mtl_jax_exit*) point=ask ;;
  *) point=other ;;
esac

create() {
  local label=${all#*--labels=}
  echo "$1 ${label%% *}" > "$FAKE/$group"
  [[ $group == tpu-vm ]] || echo "READY of-the-request" > "$FAKE/tpu-vm"
  rm -rf "$FAKE"/[01]/mtl_jax*
}

if [[ $point == "${HANG_AT:-}" ]]; then
  [[ $point != create ]] || create CREATING
  touch "$FAKE/hangs"
  exec sleep 60
fi
if [[ $point == "${PREEMPT_AT:-}" && ! -e $FAKE/preempted ]]; then
  touch "$FAKE/preempted"
  echo "PREEMPTED $(cut -d' ' -f2 "$FAKE/tpu-vm")" > "$FAKE/tpu-vm"
  exit 255
fi
if [[ $point == "${FAIL_AT:-}" ]]; then
  [[ -z ${LATE:-} ]] || create READY
  exit 1
fi

reached() { [[ $(cut -d' ' -f1 "$FAKE/tpu-vm") == READY ]] || exit 255; }

on_workers() {
  local worker command=${all#*--command=} code=0
  command=${command%% --zone=*}
  for worker in 0 1; do
    [[ $all == *"--worker=$worker "* || $all == *--worker=all* ]] || continue
    (cd "$FAKE/$worker" && HOME=$PWD PATH="$FAKE/bin:$PATH" \
      bash -c "$command") || code=$?
  done
  return $code
}

case $point in
  list)
    [[ ! -e $FAKE/$group ]] || echo "pod,$(cut -d' ' -f1 "$FAKE/$group")"
    echo 'pod-2,READY' ;;
  describe) cat "$FAKE/$group" ;;
  create)
    [[ ! -e $FAKE/$group ]] || exit 1
    create "$([[ $group == tpu-vm ]] && echo READY || echo ACTIVE)" ;;
  delete)
    [[ -e $FAKE/$group ]] || exit 1
    rm -f "$FAKE/tpu-vm" "$FAKE/$group" ;;
  results)
    reached
    if [[ $1 == storage ]]; then cp "$FAKE"/bucket/* "$5"
    else
      # shellcheck disable=SC2086  # the star of pod:FOLDER/*
      cp -r $FAKE/0/${6#pod:} "$7"
    fi ;;
  scp)
    reached
    shift 5
    files=()
    while [[ $1 != pod:* ]]; do files+=("$1"); shift; done
    for worker in 0 1; do
      cp -r "${files[@]}" "$FAKE/$worker/${1#pod:}" || exit
    done ;;
  *) reached; on_workers ;;
esac
