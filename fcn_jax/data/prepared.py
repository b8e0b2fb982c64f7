"""Prepared records of registered data sets: where they are kept, and when they are prepared again.

The records of a data set are in `prepared_dir/<data set>/<root>-<hash>/<hash>`. The first hash is
of the settings. The second is of everything else that the records depend on: the code that reads
them, the class names, and the names, sizes and modification times of the raw files. When one of
these changes, the records are prepared again. A run that still reads the version before keeps it;
older versions are deleted.

Each version holds a file `MARKER`, written before anything else. Only folders that hold it are ever
deleted.
"""

import contextlib
import dataclasses
import errno
import fcntl
import functools
import hashlib
import inspect
import io
import json
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from fcn_jax import registry
from fcn_jax.config import DataConfig
from fcn_jax.data.raw import RawDataset, open_raw, refuse_noted
from fcn_jax.errors import UserError
from fcn_jax.terminal.atomic_files import write_whole
from fcn_jax.terminal.progress import say

VERSIONS_KEPT = 2  # the current one, and the one that a running job may still read
MARKER = "fcn_jax.json"

SETTINGS_OF_READING = (
    "prepared_dir",
    "train_split",
    "eval_split",
    "canvas_px",
    "cache",
    "workers",
)
"""Settings of `DataConfig` on which the records do not depend."""


MODULES_OF_WRITING = ("records.py", "images.py", "masks.py", "palettes.py", "channels.py")
"""The code that turns raw files into records, whatever the data set."""

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


class PreparedRecords(NamedTuple):
    """Records that are complete.

    Attributes:
      builder: TFDS's builder, which reads them.
      label_maps: class names by label map, as in `RawDataset.label_maps`.
      channels: the names of extra channels.
    """

    builder: Any
    label_maps: dict[str, tuple[str, ...]]
    channels: tuple[str, ...]


def prepared_dir(data: DataConfig) -> Path:
    """The folder of all prepared records: the setting, $FCN_JAX_DATA or ~/.cache/fcn_jax/data."""
    place = data.prepared_dir or os.environ.get("FCN_JAX_DATA") or "~/.cache/fcn_jax/data"
    return Path(place).expanduser().absolute()


def open_prepared(data: DataConfig) -> PreparedRecords:
    """Opens the records of a registered data set, prepared first if need be.

    Raises:
      UserError: raw files are missing or wrong, or the records cannot be written.
    """
    root = Path(data.root).expanduser() if data.root else None
    settings = {
        name: value
        for name, value in dataclasses.asdict(data).items()
        if name not in SETTINGS_OF_READING
    }
    place = str(root.resolve()) if root else ""
    name = f"{Path(place).name or 'set'}-{_digest(settings | {'root': place})}"
    base = prepared_dir(data) / data.name / name
    if root and not root.exists() and (kept := _versions(base)):
        return _load(kept[-1])
    raw = open_raw(data)
    assert raw is not None, f"{data.name} is not registered"
    if raw.files is None:
        raw = dataclasses.replace(raw, samples=list(raw.samples))
    refuse_noted(raw.notes, data)
    folder = base / _digest(_state(raw, data))
    with contextlib.suppress(_UnusableError):
        return _load(folder)
    with _writing(folder), locked(base / "lock"):
        try:
            return _load(folder)  # another process has prepared them meanwhile
        except _UnusableError as error:
            if (folder / MARKER).is_file():
                say(f"{error}: preparing {data.name} again")
        _prepare(folder, raw, data)
        return _load(folder)


class _UnusableError(UserError):
    """Records that are missing, incomplete or damaged."""


def _load(folder: Path) -> PreparedRecords:
    import tensorflow_datasets as tfds

    marker = _read_marker(folder)
    if not marker.get("files"):
        raise _UnusableError(f"the prepared records in {folder} are incomplete")
    for name, size in marker["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise _UnusableError(f"the prepared records are damaged ({path})")
    try:
        with quiet():
            builder = tfds.builder_from_directory(folder / marker["records"])
    except Exception as error:  # TFDS has no common error for a damaged description
        raise _UnusableError(
            f"the prepared records in {folder} are damaged ({type(error).__name__})"
        ) from error
    label_maps = {name: tuple(class_names) for name, class_names in marker["label_maps"].items()}
    if folder != _versions(folder.parent)[-1]:
        with contextlib.suppress(UserError):  # somebody else's records
            _write_marker(folder, marker | {"number": _next_number(folder.parent)})
    return PreparedRecords(builder, label_maps, tuple(marker["channels"]))


def _prepare(folder: Path, raw: RawDataset, data: DataConfig) -> None:
    from fcn_jax.data.records import SegmentationBuilder

    if folder.exists() and not (folder / MARKER).is_file():
        raise UserError(
            f"{folder} exists, but fcn_jax has not written it; remove it, or set "
            "--config.data.prepared_dir to another folder"
        )
    _delete(folder)  # an interrupted preparation, or damaged records
    marker = {"number": _next_number(folder.parent)}
    folder.mkdir(parents=True)
    _write_marker(folder, marker)
    try:
        with quiet() as stdout:
            builder = SegmentationBuilder(raw, data, stdout, data_dir=folder)
            builder.prepare()
        written = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        described = {
            "label_maps": raw.label_maps,
            "channels": builder.channels,
            "records": str(Path(builder.data_dir).relative_to(folder)),
            "files": {
                str(path.relative_to(folder)): path.stat().st_size
                for path in written
                if path.name != MARKER
            },
        }
        _write_marker(folder, marker | described)
    except BaseException:
        _delete(folder)
        raise
    for old in _versions(folder.parent)[:-VERSIONS_KEPT]:
        _delete(old)


def _versions(base: Path) -> list[Path]:
    """The versions of a data set, the one that was used last at the end."""
    marked = [path.parent for path in base.glob(f"*/{MARKER}")]
    return sorted(marked, key=lambda folder: _read_marker(folder).get("number", 0))


def _next_number(base: Path) -> int:
    return max((_read_marker(folder).get("number", 0) for folder in _versions(base)), default=0) + 1


def _read_marker(folder: Path) -> dict[str, Any]:
    try:
        marker = json.loads((folder / MARKER).read_bytes())
        return marker if isinstance(marker, dict) else {}
    except (OSError, ValueError):
        return {}


def _write_marker(folder: Path, content: dict[str, Any]) -> None:
    write_whole(folder / MARKER, lambda part: part.write_text(json.dumps(content)))


def _delete(folder: Path) -> None:
    if (folder / MARKER).is_file():
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or next(
            # ArrayRecord raises RuntimeError with the system's words in its message.
            (os.strerror(code) for code in DISK_ERRORS if os.strerror(code) in str(error)),
            None,
        )
        if reason is None:
            raise
        raise UserError(
            f"cannot write the prepared records to {folder} ({reason}); free some space, or set "
            "--config.data.prepared_dir to another folder"
        ) from error


def _state(raw: RawDataset, data: DataConfig) -> dict[str, Any]:
    """Everything that the records depend on, apart from the settings."""
    root = str(Path(data.root).expanduser()) if data.root else ""
    states: dict[str, list[Any]] = {}  # samples may share a file

    def state_of(path: Path) -> list[Any]:
        name = str(path)
        if name not in states:
            states[name] = [name.removeprefix(root), *_size_and_time(name)]
        return states[name]

    modules = [Path(__file__).with_name(name).read_bytes() for name in MODULES_OF_WRITING]
    code = b"".join([_source_code(registry.datasets[data.name]), *modules])
    return {
        "code": hashlib.sha256(code).hexdigest(),
        "class_names": list(raw.label_maps.items()),
        "palette": None if raw.palette is None else raw.palette.tolist(),
        "files": [state_of(path) for path in raw.files]
        if raw.files is not None
        else [
            [sample.split, sample.name, *(state_of(file.path) for file in sample.files)]
            for sample in raw.samples
        ],
    }


def _size_and_time(path: str) -> list[Any]:
    """Size and modification time of a file, or of each file in a folder; none if it is missing."""
    try:
        status = os.stat(path)
        if not stat.S_ISDIR(status.st_mode):
            return [status.st_size, status.st_mtime_ns]
        with os.scandir(path) as entries:
            files = sorted((entry.name, entry.stat()) for entry in entries if entry.is_file())
        return [[name, status.st_size, status.st_mtime_ns] for name, status in files]
    except OSError:
        return []


def _source_code(reader: Any) -> bytes:
    """The file in which a data set's function is written."""
    while isinstance(reader, functools.partial):
        reader = reader.func
    try:
        file = Path(inspect.getsourcefile(reader) or "")
        # A notebook's cell has no file.
        return file.read_bytes() if file.is_file() else inspect.getsource(reader).encode()
    except OSError:  # typed into an interpreter
        return reader.__code__.co_code


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock that the system releases when the process ends, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def quiet(bars: bool = False) -> Iterator[TextIO]:
    """Silences TFDS's prints, log lines and, unless wanted, progress bars; yields the stdout."""
    import tensorflow_datasets as tfds
    from absl import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    if not bars:
        tfds.disable_progress_bar()
    stdout = sys.stdout
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield stdout
    finally:
        tfds.enable_progress_bar()
        logging.set_verbosity(verbosity)
