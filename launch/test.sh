#!/usr/bin/env bash
# Installs fcn_jax with its test tools into .venv and passes the tests.
# Arguments go on to pytest: launch/test.sh -m "not slow"
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/install.sh
.venv/bin/python -m pytest "$@"
