#!/usr/bin/env bash
# Installs fcn_jax with its test tools into .venv and passes the tests.
# Arguments go on to pytest: launch/test.sh -m "not slow and not long"
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/install.sh
# A file's tests stay in one process: they share what they have trained and compiled.
.venv/bin/python -m pytest --numprocesses=auto --dist=loadfile "$@"
