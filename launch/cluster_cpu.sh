#!/usr/bin/env bash
# Runs N processes of a command on this machine, as a cluster would run them on N hosts.
#
#   launch/cluster_cpu.sh N [train|evaluate] [ARGUMENTS]
#   launch/cluster_cpu.sh 2 --workdir=runs/two
#   DEVICES=4 launch/cluster_cpu.sh 2 evaluate --workdir=runs/two
#
# Each process has $DEVICES fake devices (1). Process 0 prints; errors name their process. Ctrl-C,
# SIGTERM and SIGUSR1 are passed on to all. The exit status is the first that is not 0.
set -euo pipefail
count=${1:?usage: launch/cluster_cpu.sh N [train|evaluate] [ARGUMENTS]}
shift
command=train
case "${1:-}" in train | evaluate) command=$1 && shift ;; esac
if [ -z "${VIRTUAL_ENV:-}" ]; then
    cd "$(dirname "$0")/.."
    . launch/install.sh
    VIRTUAL_ENV=$PWD/.venv
fi
python=$VIRTUAL_ENV/bin/python
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
export JAX_PLATFORMS=cpu
export XLA_FLAGS="--xla_force_host_platform_device_count=${DEVICES:-1} ${XLA_FLAGS:-}"
# In groups of their own: a terminal's Ctrl-C reaches this script alone, which passes it on once.
set -m
pids=()
for ((id = 0; id < count; id++)); do
    "$python" -m "fcn_jax.$command" --coordinator="127.0.0.1:$port" --num_processes="$count" \
        --process_id="$id" "$@" </dev/null &
    pids+=($!)
done
for signal in INT TERM USR1; do
    trap "kill -$signal \"\${pids[@]}\" 2>/dev/null || true" "$signal"
done
status=0
for pid in "${pids[@]}"; do
    while ended=0 && { wait "$pid" || ended=$?; } && kill -0 "$pid" 2>/dev/null; do :; done
    [ "$status" -ne 0 ] || status=$ended
done
exit "$status"
