#!/usr/bin/env bash
# Runs mtl_jax.main on N fake CPU devices, to try what a pod will do.
#
#   launch/fake_devices.sh N --config=configs/quickstart.py ...
set -euo pipefail
if [[ ! "${1:-}" =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: launch/fake_devices.sh N --config=..." >&2
  exit 2
fi
devices=$1
shift
export JAX_PLATFORMS=cpu
export XLA_FLAGS="${XLA_FLAGS:-} \
--xla_force_host_platform_device_count=$devices"
exec "${PYTHON:-python}" -m mtl_jax.main "$@"
