"""What an interrupted labelling leaves to go on from: the label maps of the tiles so far."""

import contextlib
import fcntl
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from fcn_jax.errors import UserError
from fcn_jax.terminal.progress import say


class UnfinishedTiles:
    """Label maps of tiles, one after another in a file, and beside it how many are done.

    TARGET.part         the bytes of each tile's label maps, in the order of their names
    TARGET.part.json    what they are made with, and how many count: renamed into place after the
                        bytes are on the disk, so that what an interruption cut is done again

    Args:
        target: the file that is to come of them.
        made_with: what the bytes depend on; those of anything else are thrown away.
        tiles: rows and columns of each, in their order.
        label_maps: names.

    Raises:
        UserError: the files cannot be written, or another process is writing them.
    """

    def __init__(
        self,
        target: Path,
        made_with: Mapping[str, Any],
        tiles: Sequence[tuple[slice, slice]],
        label_maps: Sequence[str],
    ):
        self._path = part_of(target)
        self._about = target.with_name(f"{target.name}.part.json")
        self._made_with = json.loads(json.dumps(made_with))
        self._tiles = tiles
        self._label_maps = tuple(label_maps)
        pixels = [_pixels(*tile) for tile in tiles]
        self._starts = [0, *itertools.accumulate(n * len(self._label_maps) for n in pixels)]
        self.count = 0

    @property
    def bytes_left(self) -> int:
        return self._starts[-1] - self._starts[self.count]

    def __enter__(self) -> Self:
        with self._errors():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a+b")
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._file.close()
                raise UserError(f"{self._path}: another process is writing it") from None
            self.count = self._counted()
            self._file.truncate(self._starts[self.count])
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._file.close()

    def append(self, labels: Mapping[str, np.ndarray]) -> None:
        """Adds the label maps of the next tile, uint8, by name."""
        with self._errors():
            for name in self._label_maps:
                self._file.write(np.ascontiguousarray(labels[name]).data)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._write_count(self.count + 1)
        self.count += 1

    def pieces(self, label_map: str) -> Iterator[tuple[slice, slice, np.ndarray]]:
        """Rows, columns and label map of each tile that is done."""
        place = self._label_maps.index(label_map)
        for (rows, columns), start in zip(self._tiles, self._starts[: self.count], strict=False):
            pixels = _pixels(rows, columns)
            data = os.pread(self._file.fileno(), pixels, start + place * pixels)
            label = np.frombuffer(data, np.uint8)
            yield rows, columns, label.reshape(rows.stop - rows.start, columns.stop - columns.start)

    def remove(self) -> None:
        """Once the target is written."""
        self._about.unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)

    def _counted(self) -> int:
        """How many tiles of the same making are there."""
        try:
            about = json.loads(self._about.read_text())
            made_with, count = dict(about["made_with"]), int(about["tiles"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        differences = [
            f"{name} was {made_with.get(name)} and is {value}"
            for name, value in self._made_with.items()
            if made_with.get(name) != value
        ]
        if differences:
            say(f"{self._path} is of other making ({'; '.join(differences)}): beginning anew")
            return 0
        whole = 0 <= count <= len(self._tiles)
        if not whole or os.fstat(self._file.fileno()).st_size < self._starts[count]:
            return 0
        return count

    def _write_count(self, count: int) -> None:
        next_about = self._about.with_name(f"{self._about.name}.next")
        next_about.write_text(json.dumps({"made_with": self._made_with, "tiles": count}))
        next_about.replace(self._about)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            kept = ""
            if self.count:
                kept = f"; {self.count} {'tile is' if self.count == 1 else 'tiles are'} kept"
            raise UserError(
                f"cannot write {self._path} ({error.strerror or error}): mend this and start the "
                f"same command again{kept}"
            ) from error


def part_of(target: Path) -> Path:
    """Where the tiles of an unfinished target lie."""
    return target.with_name(f"{target.name}.part")


def _pixels(rows: slice, columns: slice) -> int:
    return (rows.stop - rows.start) * (columns.stop - columns.start)
