"""The notebooks of docs/notebooks run, at a small size, and hold the outputs of a full run."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.own_folder import ROOT

reason = "nbclient and ipykernel are not installed (pip install '.[notebooks]')"
nbclient = pytest.importorskip("nbclient", reason=reason)
nbformat = pytest.importorskip("nbformat", reason=reason)
pytest.importorskip("ipykernel", reason=reason)

NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
MAX_BYTES = 400_000


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds_of_outputs(cell: Any) -> set[str]:
    """Returns what a cell gave: stream, or the types of what it displayed."""
    kinds = (list(output.get("data", {"stream": ""})) for output in cell.outputs)
    return {kind for of_output in kinds for kind in of_output if kind != "text/plain"}


def test_there_are_notebooks():
    assert len(NOTEBOOKS) == 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_was_run_from_the_top(path: Path):
    assert path.stat().st_size < MAX_BYTES
    cells = code_cells(nbformat.read(path, as_version=4))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [cell.source for cell in cells for x in cell.outputs if x.output_type == "error"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    notebook = nbformat.read(path, as_version=4)
    stored = [kinds_of_outputs(cell) for cell in code_cells(notebook)]
    assert {"stream", "image/jpeg"} <= set().union(*stored)
    monkeypatch.setenv("QUICK", "1")
    monkeypatch.setenv("FCN_JAX_DATA", str(tmp_path / "prepared"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("MPLBACKEND", raising=False)
    resources = {"metadata": {"path": str(tmp_path)}}
    client = nbclient.NotebookClient(notebook, timeout=300, resources=resources)
    client.execute()
    assert [kinds_of_outputs(cell) for cell in code_cells(notebook)] == stored
