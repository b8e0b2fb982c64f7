"""Code of other projects, run without the packages that the rest of their files ask for."""

import ast
import sys
from collections.abc import Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

NOT_IMPORTED = Path(sys.prefix) / "peers"
"""Where `.ci/run` installs packages that would also install a package `tests`."""


def definitions(package: str, path: str, names: set[str], needed: Mapping[str, Any]) -> Any:
    """Runs the definitions of some functions and classes in a file of an installed package.

    Skips the test if the package is not installed.

    Args:
        package: the package's name, as it is imported.
        path: the file in the package's folder.
        names: the functions and classes.
        needed: what they use from the rest of the file, by name.

    Returns:
        A namespace with the functions and classes.
    """
    spec = PathFinder.find_spec(package, [*sys.path, str(NOT_IMPORTED)])
    if spec is None:
        pytest.skip(f"{package} is not installed")
    (root,) = spec.submodule_search_locations or ()
    tree = ast.parse((Path(root) / path).read_text())
    wanted = (ast.FunctionDef, ast.ClassDef)
    tree.body = [node for node in tree.body if isinstance(node, wanted) and node.name in names]
    tree.body.insert(0, ast.parse("from __future__ import annotations").body[0])
    namespace = dict(needed)
    exec(compile(tree, path, "exec"), namespace)
    return SimpleNamespace(**{name: namespace[name] for name in names})
