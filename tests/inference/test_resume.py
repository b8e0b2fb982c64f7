"""Tiles on disk after an interruption, and what a resumed command does with them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fcn_jax.errors import UserError
from fcn_jax.inference.resume import UnfinishedTiles
from tests.full_disk import files_of_at_most

SPANS = [(slice(0, 4), slice(0, 5)), (slice(0, 4), slice(5, 7)), (slice(4, 6), slice(0, 5))]


def unfinished(folder: Path, **inputs: Any) -> UnfinishedTiles:
    return UnfinishedTiles(folder / "a.tif", {"tile": 4} | inputs, SPANS, ["", "depth"])


def labels_of(index: int) -> dict[str, np.ndarray]:
    rows, columns = SPANS[index]
    shape = (rows.stop - rows.start, columns.stop - columns.start)
    return {"": np.full(shape, index, np.uint8), "depth": np.full(shape, 10 + index, np.uint8)}


def test_finished_tiles_survive_the_process(tmp_path: Path) -> None:
    with unfinished(tmp_path) as tiles:
        assert tiles.bytes_left == 2 * (20 + 8 + 10)
        tiles.append(labels_of(0))
        tiles.append(labels_of(1))
    # A part of the third tile was written when the power failed.
    with (tmp_path / "a.tif.part").open("ab") as file:
        file.write(b"\7" * 9)
    with unfinished(tmp_path) as tiles:
        assert tiles.count == 2
        tiles.append(labels_of(2))
    with unfinished(tmp_path) as tiles:
        assert (tiles.count, tiles.bytes_left) == (3, 0)
        for name, offset in {"": 0, "depth": 10}.items():
            for index, (rows, columns, label) in enumerate(tiles.pieces(name)):
                assert (rows, columns) == SPANS[index]
                assert label.shape == labels_of(index)[name].shape
                assert np.all(label == offset + index)
        tiles.remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("harm", ["count without bytes", "no json", "half a json", "too many"])
def test_tiles_of_damaged_files_are_predicted_again(tmp_path: Path, harm: str) -> None:
    with unfinished(tmp_path) as tiles:
        tiles.append(labels_of(0))
    state = tmp_path / "a.tif.part.json"
    match harm:
        case "count without bytes":
            state.write_text(state.read_text().replace('"tiles": 1', '"tiles": 2'))
        case "too many":
            state.write_text(state.read_text().replace('"tiles": 1', '"tiles": 4'))
        case "no json":
            state.unlink()
        case "half a json":
            state.write_text(state.read_text()[:20])
    with unfinished(tmp_path) as tiles:
        assert tiles.count == 0
    assert (tmp_path / "a.tif.part").stat().st_size == 0


def test_tiles_of_other_inputs_are_discarded_with_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with unfinished(tmp_path) as tiles:
        tiles.append(labels_of(0))
    with unfinished(tmp_path, tile=8) as tiles:
        assert tiles.count == 0
    assert "tile was 4 and is 8): starting again" in capsys.readouterr().out


def test_two_processes_do_not_write_the_same_tiles(tmp_path: Path) -> None:
    with (
        unfinished(tmp_path),
        pytest.raises(UserError, match="another process is writing it"),
        unfinished(tmp_path),
    ):
        pass


def test_a_full_disk_keeps_the_tiles_before(tmp_path: Path) -> None:
    with (
        unfinished(tmp_path) as tiles,
        files_of_at_most(30),
        pytest.raises(UserError, match=r"same command again$"),
    ):
        tiles.append(labels_of(0))
    with unfinished(tmp_path) as tiles:
        tiles.append(labels_of(0))
        with files_of_at_most(45), pytest.raises(UserError, match=r"again; 1 tile is kept$"):
            tiles.append(labels_of(1))
    with unfinished(tmp_path) as tiles:
        assert tiles.count == 1
        tiles.append(labels_of(1))
        with files_of_at_most(60), pytest.raises(UserError, match=r"again; 2 tiles are kept$"):
            tiles.append(labels_of(2))


def test_no_tiles_are_reported_as_kept_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"a\.tif\.part \(.+\): .* same command again$"),
        unfinished(tmp_path / "file"),
    ):
        pass
