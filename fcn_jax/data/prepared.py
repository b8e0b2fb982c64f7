"""Prepared records of registered data sets: their folders, and when they are prepared again.

The records of a data set are in `prepared_dir/<data set>/<root>-<hash>/<hash>`. The first hash is
computed from the settings. The second is computed from everything else that the records depend on:
the code that reads the raw files, their names, sizes and modification times, and the class names.
When one of these changes, a new version of the records is prepared. The version before it is kept,
since a run may still read it; older versions are deleted.

Each version has a file `MARKER`, written before anything else. Only folders that contain it are
ever deleted.
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
import pwd
import shutil
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from fcn_jax import registry
from fcn_jax.config import DataConfig
from fcn_jax.data.palettes import Colour
from fcn_jax.data.raw import RawDataset, expanded, list_samples, open_raw, raise_for_notes
from fcn_jax.errors import UserError
from fcn_jax.terminal.atomic_files import write_text
from fcn_jax.terminal.progress import say

VERSIONS_KEPT = 2  # the current one, and one that a running job may still read
MARKER = "fcn_jax.json"

READ_SETTINGS = (
    "prepared_dir",
    "train_split",
    "eval_split",
    "canvas_px",
    "cache",
    "workers",
)
"""Settings of `DataConfig` that do not change the records."""

WRITER_MODULES = (
    *("records.py", "images.py", "masks.py", "palettes.py", "channels.py"),
    *("folder.py", "annotations.py", "cvat.py", "labelme.py", "coco.py", "polygons.py"),
)
"""The code that turns the raw files of any data set into records."""

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


class PreparedRecords(NamedTuple):
    """The complete records of a data set.

    Attributes:
      builder: the TFDS builder that reads the records.
      label_maps: class names by label map, as in `RawDataset.label_maps`.
      channels: the names of extra channels.
      colours: the colours of the classes, if the data set defines them.
    """

    builder: Any
    label_maps: dict[str, tuple[str, ...]]
    channels: tuple[str, ...]
    colours: tuple[Colour, ...] = ()


def prepared_dir(data: DataConfig) -> Path:
    """Returns `data.prepared_dir`, or else $FCN_JAX_DATA, or else ~/.cache/fcn_jax/data."""
    folder = data.prepared_dir or os.environ.get("FCN_JAX_DATA") or "~/.cache/fcn_jax/data"
    return expanded(folder, "data.prepared_dir").absolute()


def open_prepared(data: DataConfig) -> PreparedRecords:
    """Opens the records of a registered data set; prepares them first if necessary.

    Raises:
      UserError: raw files are missing or wrong, or the records cannot be written.
    """
    root = expanded(data.root, "data.root") if data.root else None
    settings = {
        name: value for name, value in dataclasses.asdict(data).items() if name not in READ_SETTINGS
    }
    full_path = str(root.resolve()) if root else ""
    name = f"{Path(full_path).name or 'set'}-{_digest(settings | {'root': full_path})}"
    base = prepared_dir(data) / data.name / name
    if root and not root.exists() and (versions := _versions(base)):
        return _load_newest_intact(versions, root)
    raw = open_raw(data)
    assert raw is not None, f"{data.name} is not registered"
    if raw.files is None:
        raw = dataclasses.replace(raw, samples=list_samples(raw, data))
    raise_for_notes(raw.notes, data)
    folder = base / _digest(_state(raw, data))
    with contextlib.suppress(_UnusableError):
        return _load(folder)
    with _writing(folder), locked(base / "lock"):
        try:
            return _load(folder)  # prepared by another process while this one waited
        except _UnusableError as error:
            if (folder / MARKER).is_file():
                say(f"{error}: preparing {data.name} again")
        _prepare(folder, raw, data)
        return _load(folder)


class _UnusableError(UserError):
    """Records that are missing, incomplete or damaged."""


def _load_newest_intact(versions: Sequence[Path], root: Path) -> PreparedRecords:
    """Loads the most recently used records of a data set whose raw files are gone.

    Raises:
      UserError: those of every version are damaged.
    """
    problems: list[_UnusableError] = []
    for folder in reversed(versions):
        try:
            records = _load(folder)
        except _UnusableError as error:
            problems.append(error)
            continue
        if problems:
            say(
                f"note: {problems[0]}, and {root}, from which they were prepared, is gone: an "
                f"earlier state of the data set is used ({folder})"
            )
        return records
    raise UserError(f"{problems[0]}, and {root}, from which they were prepared, is gone")


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
        with quiet_tfds():
            builder = tfds.builder_from_directory(folder / marker["records"])
    except Exception as error:  # TFDS raises many types for a damaged description
        raise _UnusableError(
            f"the prepared records in {folder} are damaged ({type(error).__name__})"
        ) from error
    label_maps = {name: tuple(class_names) for name, class_names in marker["label_maps"].items()}
    if folder != _versions(folder.parent)[-1]:
        with contextlib.suppress(UserError):  # records of another user, which are read-only
            _write_marker(folder, marker | {"number": _next_number(folder.parent)})
    colours = tuple((red, green, blue) for red, green, blue in marker.get("colours", ()))
    return PreparedRecords(builder, label_maps, tuple(marker["channels"]), colours)


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
        with quiet_tfds() as stdout:
            builder = SegmentationBuilder(raw, data, stdout, data_dir=folder)
            builder.prepare()
        written = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        description = {
            "label_maps": raw.label_maps,
            "channels": builder.channels,
            "colours": raw.colours,
            "records": str(Path(builder.data_dir).relative_to(folder)),
            "files": {
                str(path.relative_to(folder)): path.stat().st_size
                for path in written
                if path.name != MARKER
            },
        }
        _write_marker(folder, marker | description)
    except BaseException:
        _delete(folder)
        raise
    for old in _versions(folder.parent)[:-VERSIONS_KEPT]:
        _delete(old)


def _versions(base: Path) -> list[Path]:
    """Returns the folders of a data set's versions, the most recently used one last."""
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
    write_text(folder / MARKER, json.dumps(content))


def _delete(folder: Path) -> None:
    if (folder / MARKER).is_file():
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or next(
            # ArrayRecord raises a RuntimeError whose message contains the text of the error code.
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
    """Returns everything that the records depend on, apart from the settings."""
    root = str(expanded(data.root, "data.root")) if data.root else ""
    states: dict[str, list[Any]] = {}  # samples may share a file

    def state_of(path: Path) -> list[Any]:
        name = str(path)
        if name not in states:
            states[name] = [name.removeprefix(root), *_size_and_time(name)]
        return states[name]

    modules = [Path(__file__).with_name(name).read_bytes() for name in WRITER_MODULES]
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
    """Returns the size and time of a file, or of each file in a folder; [] if it is missing."""
    try:
        status = os.stat(path)
        if not stat.S_ISDIR(status.st_mode):
            return [status.st_size, status.st_mtime_ns]
        with os.scandir(path) as entries:
            files = sorted((entry.name, entry.stat()) for entry in entries if entry.is_file())
        return [[name, status.st_size, status.st_mtime_ns] for name, status in files]
    except OSError:
        return []


def _source_code(function: Any) -> bytes:
    """Returns the source file that defines the registered function of a data set."""
    while isinstance(function, functools.partial):
        function = function.func
    try:
        file = Path(inspect.getsourcefile(function) or "")
        # A notebook's cell has no file.
        return file.read_bytes() if file.is_file() else inspect.getsource(function).encode()
    except OSError:  # typed into an interpreter
        return function.__code__.co_code


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive file lock; the system releases it even if the process is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def quiet_tfds(bars: bool = False) -> Iterator[TextIO]:
    """Silences the prints and logs of TFDS, and its progress bars unless `bars`; yields stdout."""
    import tensorflow_datasets as tfds
    from absl import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    if not bars:
        tfds.disable_progress_bar()
    stdout = sys.stdout
    try:
        with contextlib.redirect_stdout(io.StringIO()), _named_owners():
            yield stdout
    finally:
        tfds.enable_progress_bar()
        logging.set_verbosity(verbosity)


@contextlib.contextmanager
def _named_owners() -> Iterator[None]:
    """Lets TFDS's file library look up the owner of files whose number has no name.

    It fails otherwise in a container that runs with another user's number (`docker run -u`).
    """
    lookup = pwd.getpwuid

    def name_of(number: int) -> pwd.struct_passwd:
        try:
            return lookup(number)
        except KeyError:
            return pwd.struct_passwd((str(number), "", number, -1, "", "", ""))

    pwd.getpwuid = name_of
    try:
        yield
    finally:
        pwd.getpwuid = lookup
