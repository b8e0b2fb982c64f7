"""What an interruption leaves, and what becomes of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fcn_jax.errors import UserError
from fcn_jax.inference.resume import UnfinishedTiles
from tests.full_disk import files_of_at_most

SPANS = [(slice(0, 4), slice(0, 5)), (slice(0, 4), slice(5, 7)), (slice(4, 6), slice(0, 5))]


def unfinished(folder: Path, **made_with: Any) -> UnfinishedTiles:
    return UnfinishedTiles(folder / "a.tif", {"tile": 4} | made_with, SPANS, ["", "depth"])


def labels_of(index: int) -> dict[str, np.ndarray]:
    rows, columns = SPANS[index]
    shape = (rows.stop - rows.start, columns.stop - columns.start)
    return {"": np.full(shape, index, np.uint8), "depth": np.full(shape, 10 + index, np.uint8)}


def test_tiles_that_are_done_stay_when_the_process_does_not(tmp_path: Path) -> None:
    with unfinished(tmp_path) as tiles:
        assert tiles.bytes_left == 2 * (20 + 8 + 10)
        tiles.append(labels_of(0))
        tiles.append(labels_of(1))
    # Of the third tile a part was written when the power went.
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
def test_what_cannot_be_trusted_is_done_again(tmp_path: Path, harm: str) -> None:
    with unfinished(tmp_path) as tiles:
        tiles.append(labels_of(0))
    about = tmp_path / "a.tif.part.json"
    match harm:
        case "count without bytes":
            about.write_text(about.read_text().replace('"tiles": 1', '"tiles": 2'))
        case "too many":
            about.write_text(about.read_text().replace('"tiles": 1', '"tiles": 4'))
        case "no json":
            about.unlink()
        case "half a json":
            about.write_text(about.read_text()[:20])
    with unfinished(tmp_path) as tiles:
        assert tiles.count == 0
    assert (tmp_path / "a.tif.part").stat().st_size == 0


def test_tiles_of_other_making_are_thrown_away_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with unfinished(tmp_path) as tiles:
        tiles.append(labels_of(0))
    with unfinished(tmp_path, tile=8) as tiles:
        assert tiles.count == 0
    assert "tile was 4 and is 8): beginning anew" in capsys.readouterr().out


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


def test_where_nothing_can_be_written_nothing_is_said_to_be_kept(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"a\.tif\.part \(.+\): .* same command again$"),
        unfinished(tmp_path / "file"),
    ):
        pass
