#!/usr/bin/env bash
# Measures everything that needs a GPU, within 20 minutes, into $OUT (default: gpu_results).
#
#   benchmarks/on_gpu.sh [VOCdevkit [squeezenet1_1.npz]]
#
# train_step.json, memory.json and upsample.json hold the benchmark's rows against PyTorch: the steps
# with their share of the bf16 peak, peak memory and the largest batch, the transposed convolutions.
# With a folder of VOC, voc/ holds a whole training run and its scores. $PYTHON names the
# interpreter; SMALL=1 tries the script out on a CPU, at sizes whose times mean nothing. A part that
# fails or takes too long leaves the others' results.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-gpu_results}
python=${PYTHON:-python3}
voc=${1:-} weights=${2:-}
mkdir -p "$out"
export XLA_PYTHON_CLIENT_PREALLOCATE=false
# What one part has compiled, the next one finds.
JAX_COMPILATION_CACHE_DIR=$(mktemp -d)
export JAX_COMPILATION_CACHE_DIR
trap 'rm -rf "$JAX_COMPILATION_CACHE_DIR"' EXIT
status=0

part() { # NAME SECONDS COMMAND...: runs a command with a limit and writes its output to NAME.log
    local name=$1 seconds=$2
    shift 2
    echo "== $name: $*"
    timeout --kill-after=20 "$seconds" "$@" 2>&1 | tee "$out/$name.log"
    local ended=${PIPESTATUS[0]}
    [ "$ended" = 0 ] || { echo "== $name ended with status $ended"; status=1; }
}

suite() { # NAME SECONDS: runs a suite of the benchmark
    local options=("--suites=$1" "--json=$out/$1.json")
    "$python" -c 'import torch' 2> /dev/null && options+=(--against=torch)
    [ -z "${SMALL:-}" ] || options+=(--small --all --repeats=1)
    part "$1" "$2" "$python" -m benchmarks "${options[@]}"
}

part machine 60 "$python" -c 'import jax; print(jax.__version__, jax.devices())'
nvidia-smi >> "$out/machine.log" 2>&1 || echo "no nvidia-smi here" >> "$out/machine.log"
suite train_step 400
if [ -z "$voc" ]; then
    echo "== no training run: give the folder of VOC"
elif ! "$python" -c 'import tensorflow_datasets' 2> /dev/null; then
    echo "== no training run: tensorflow-datasets is not installed"
else
    run=("$python" -m fcn_jax.train --config=configs/voc_fcn8s_squeezenet.py "--workdir=$out/voc"
        "--config.data.root=$voc" "--config.data.prepared_dir=$out/prepared")
    [ -z "$weights" ] || run+=("--config.init=$weights")
    [ -z "${SMALL:-}" ] || run+=(--config.train.steps=2 --config.optim.warmup_steps=1
        --config.augment.crop_px=64,64 --config.train.batch_size=2)
    part voc_training 240 "${run[@]}"
fi
suite upsample 240
suite memory 260
exit $status
