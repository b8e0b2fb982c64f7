"""Where prepared records lie, and when they are prepared anew.

A prepared set lies under `prepared_dir/<data set>/<folder>-<hash>/<hash>`: the first hash is of the
raw files' place and of the settings, the second of the files as they are (names, sizes, times). A
set whose files have changed is thus prepared anew, while a run that still reads the version before
keeps it; versions older than that are deleted.
"""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fcn_jax.config import DataConfig
from fcn_jax.errors import UserError

VERSIONS_KEPT = 2  # the current one and the one that a running job may still read


def prepared_dir(data: DataConfig) -> Path:
    """Where prepared records are kept: the setting, $FCN_JAX_DATA or ~/.cache/fcn_jax/data."""
    place = data.prepared_dir or os.environ.get("FCN_JAX_DATA") or "~/.cache/fcn_jax/data"
    return Path(place).expanduser().absolute()


def version_of(
    top: Path, data: DataConfig, settings: dict[str, Any], raw_files: Callable[[Path], list[Path]]
) -> "Version":
    if not data.root:
        return Version(top / data.name / "official", settings, [])
    root = Path(data.root).expanduser().resolve()
    base = top / data.name / f"{root.name}-{_digest(settings | {'root': str(root)})}"
    if root.is_dir():
        return Version(base, settings, raw_files(root))
    kept = sorted(base.glob("*/"), key=lambda path: path.stat().st_mtime)
    if not kept:
        raise UserError(f"{root}: no such folder (--config.data.root)")
    return Version(base, settings, [], digest=kept[-1].name)  # raw files gone, records still here


class Version:
    """A data set's records as prepared from raw files in one state."""

    def __init__(self, base: Path, settings: dict[str, Any], files: list[Path], digest: str = ""):
        state = {str(path): [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
        self._folder = base / (digest or _digest(settings | {"files": state}))

    def open(self, builder_class: Any, top: Path, **options: Any) -> Any:
        """The builder of the prepared records."""
        import tensorflow_datasets as tfds

        with quiet():
            if not (records := self._records()):
                with locked(self._folder.parent / "lock"):
                    if not self._records():  # nor has another process prepared them meanwhile
                        self._prepare(builder_class, top, options)
                records = self._records()
            return tfds.builder_from_directory(records)

    def _records(self) -> Path | None:
        complete = [
            path.parent
            for path in self._folder.glob("**/dataset_info.json")
            if not path.parent.name.startswith("incomplete.")
        ]
        return complete[0] if complete else None

    def _prepare(self, builder_class: Any, top: Path, options: dict[str, Any]) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)  # what an interrupted preparation left
        builder = builder_class(data_dir=self._folder, **options)
        try:
            builder.prepare(download_dir=str(top / "downloads"))
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        versions = sorted(self._folder.parent.glob("*/"), key=lambda path: path.stat().st_mtime)
        for old in versions[:-VERSIONS_KEPT]:
            shutil.rmtree(old, ignore_errors=True)


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
def quiet(bars: bool = False) -> Iterator[None]:
    """Without TFDS's prints, log lines and, unless wanted, progress bars."""
    import tensorflow_datasets as tfds
    from absl import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    if not bars:
        tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
        logging.set_verbosity(verbosity)
