# Creates .venv and installs fcn_jax into it, unless that is done. The other scripts source this file.
# $PYTHON names another interpreter than python3.
if [ ! -x .venv/bin/python ]; then
    "${PYTHON:-python3}" -m venv .venv
fi
installed=.venv/installed-pyproject.toml
if ! cmp -s pyproject.toml "$installed"; then
    echo "installing fcn_jax into .venv (a minute or two) ..." >&2
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
    cp pyproject.toml "$installed"
fi
