"""Label maps of the tiles that are done, on disk, so that an interrupted command can resume."""

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
from fcn_jax.terminal.atomic_files import replacement
from fcn_jax.terminal.progress import say


class UnfinishedTiles:
    """The label maps of a target's tiles, one after another in a file, and their number.

    TARGET.part         the bytes of each tile's label maps, in the order of their names
    TARGET.part.json    the inputs and the number of tiles that are done; replaced after the bytes
                        are on the disk, so a tile that was interrupted is predicted again

    Args:
        target: the file that the label maps are for.
        inputs: JSON values that the label maps depend on. Tiles of other inputs are discarded.
        tiles: rows and columns of each tile, in order; of volumes, the second axis of a tile holds
            all others.
        label_maps: names of the label maps.

    Attributes:
        tiles: the argument.
        count: the number of tiles that are done.

    Raises:
        UserError: the files cannot be written, or another process is writing them.
    """

    def __init__(
        self,
        target: Path,
        inputs: Mapping[str, Any],
        tiles: Sequence[tuple[slice, slice]],
        label_maps: Sequence[str],
    ):
        self._path = part_of(target)
        self._state_path = target.with_name(f"{target.name}.part.json")
        self._inputs = json.loads(json.dumps(inputs))
        self.tiles = tiles
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
            self.count = self._read_count()
            self._file.truncate(self._starts[self.count])
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._file.close()

    def append(self, labels: Mapping[str, np.ndarray]) -> None:
        """Writes the label maps of the next tile, uint8, by name."""
        with self._errors():
            for name in self._label_maps:
                self._file.write(np.ascontiguousarray(labels[name]).data)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._write_count(self.count + 1)
        self.count += 1

    def pieces(self, label_map: str) -> Iterator[tuple[slice, slice, np.ndarray]]:
        """Yields the rows, columns and label map of each tile that is done."""
        index = self._label_maps.index(label_map)
        for (rows, columns), start in zip(self.tiles, self._starts[: self.count], strict=False):
            pixels = _pixels(rows, columns)
            data = os.pread(self._file.fileno(), pixels, start + index * pixels)
            label = np.frombuffer(data, np.uint8)
            yield rows, columns, label.reshape(rows.stop - rows.start, columns.stop - columns.start)

    def remove(self) -> None:
        """Deletes the files; called when the target is written."""
        self._state_path.unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)

    def _read_count(self) -> int:
        """Returns the number of tiles on disk that have the same inputs."""
        try:
            state = json.loads(self._state_path.read_text())
            inputs, count = dict(state["inputs"]), int(state["tiles"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        differences = [
            f"{name} was {inputs.get(name)} and is {value}"
            for name, value in self._inputs.items()
            if inputs.get(name) != value
        ]
        if differences:
            say(f"{self._path} is discarded ({'; '.join(differences)}): starting again")
            return 0
        is_possible = 0 <= count <= len(self.tiles)
        if not is_possible or os.fstat(self._file.fileno()).st_size < self._starts[count]:
            return 0
        return count

    def _write_count(self, count: int) -> None:
        with replacement(self._state_path) as part:
            part.write_text(json.dumps({"inputs": self._inputs, "tiles": count}))

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            kept = ""
            if self.count:
                kept = f"; {self.count} {'tile is' if self.count == 1 else 'tiles are'} kept"
            raise UserError(
                f"cannot write {self._path} ({error.strerror or error}): correct this and start "
                f"the same command again{kept}"
            ) from error


def part_of(target: Path) -> Path:
    """Returns the path of an unfinished target's tiles."""
    return target.with_name(f"{target.name}.part")


def _pixels(rows: slice, columns: slice) -> int:
    return (rows.stop - rows.start) * (columns.stop - columns.start)
