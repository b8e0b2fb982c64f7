#!/usr/bin/env bash
# Installs fcn_jax into .venv and runs the main job on the embedded default data.
# Passes its arguments on to the training: launch/local.sh --workdir=runs/mine
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/install.sh
.venv/bin/python -m fcn_jax.train "$@"
