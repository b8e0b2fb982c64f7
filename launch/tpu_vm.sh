#!/usr/bin/env bash
# Trains on a spot slice of Cloud TPUs, and goes on after every preemption until the run is done:
#
#     ZONE=us-west4-a BUCKET=mine launch/tpu_vm.sh NAME v5litepod-16 --workdir=/gcs/run [ARGS]
#
# Queues the slice NAME, copies this clone to all its hosts, mounts the bucket there as /gcs (with
# gcsfuse), trains with ARGS and follows the log. A preempted slice is deleted and queued again, and
# the run resumed from /gcs. Afterwards the slice is deleted; one whose training failed is kept.
# VERSION is the image of the hosts. DRY_RUN=1 prints every command and runs none.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" && exit 2; }
name=$1 type=$2 train="python3 -m fcn_jax.train$(printf ' %q' "${@:3}")" && cd "$(dirname "$0")/.."
run() { if [ "${DRY_RUN:-}" ]; then { printf '%q ' "$@" && echo; } >&2; else "$@"; fi; }
tpu() { run gcloud compute tpus "$@" --zone="${ZONE:?must be set, such as us-west4-a}" --quiet; }
on() { tpu tpu-vm ssh "$name" --worker="$1" --command="$2"; }
state() { tpu queued-resources describe "$name" --format='value(state.state)'; }
active() { [ "${DRY_RUN:-$(state)}" = "${DRY_RUN:-ACTIVE}" ]; }
create() {
    tpu queued-resources create "$name" --node-id="$name" --accelerator-type="$type" --spot \
        --runtime-version="${VERSION:-v2-alpha-tpuv5-lite}"
    until active; do sleep 60; done
}
start() {
    on all 'mkdir -p fcn_jax && sudo mkdir -p /gcs && sudo chmod 777 /gcs' &&
        tpu tpu-vm scp --recurse --worker=all fcn_jax configs pyproject.toml README.md "$name:fcn_jax" &&
        on all "gcsfuse ${BUCKET:?must be set} /gcs && cd fcn_jax && pip install -q -e '.[tpu]'" &&
        on all "cd fcn_jax && (nohup sh -c '${train//\'/\'\\\'\'}; echo \$? > status' > log 2>&1 &)"
}
# shellcheck disable=SC2016 # the host expands these
follow() { on 0 'cd fcn_jax; tail -F -n +1 log & until [ -s status ]; do sleep 5; done
    kill $!; exit $(cat status)'; }
while create; do
    result=255 # ssh's own status: the connection is lost
    if start; then
        while result=0 && { follow || result=$?; } && [ "$result" -eq 255 ] && active; do sleep 9; done
    fi
    if [ "$result" -ne 0 ] && [ "$result" -ne 143 ] && active; then exit "$result"; fi
    tpu queued-resources delete "$name" --force
    if [ "$result" -eq 0 ]; then exit; fi
done
