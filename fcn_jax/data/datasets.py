"""Data sets by name: prepared on first use, then read record by record.

    dataset = open_dataset(config.data)
    dataset.class_names                  # ("background", "aeroplane", …)
    record = dataset.split("train")[0]   # image uint8 (h, w, 3), label uint8 (h, w), name

`shapes`, `voc`, `voc/trainaug` and `folder` are this package's own builders; any other name is
TFDS's. Prepared records are ArrayRecord files; neither writing nor reading those of this package
imports TensorFlow.

A prepared set lies under `prepared_dir/<data set>/<folder>-<hash>/<hash>`: the first hash is of the
raw files' place and of the settings, the second of the files as they are (names, sizes, times). A
set whose files have changed is thus prepared anew, while a run that still reads the version before
keeps it; versions older than that are deleted.
"""

import contextlib
import dataclasses
import difflib
import fcntl
import hashlib
import io
import json
import os
import shutil
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.config import DataConfig
from fcn_jax.data.labels import VOID_LABEL, check_labels, decode_image, decode_mask
from fcn_jax.errors import UserError
from fcn_jax.progress import progress_bar

OWN_NAMES = ("shapes", "voc", "voc/trainaug", "folder")
VERSIONS_KEPT = 2  # the current one and the one that a running job may still read


@dataclasses.dataclass(frozen=True)
class Split:
    """The records of a split, by index: read and decoded when asked for. Can be pickled.

    `split[i]` is `{"image": uint8 (h, w, 3), "label": uint8 (h, w), "name": str}`.
    """

    name: str
    num_classes: int
    records: Any = dataclasses.field(repr=False)  # TFDS's data source; images still encoded
    image_feature: str = "image"
    label_feature: str = "label"
    label_offset: int = 0

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One record.

        Raises:
          UserError: a label that is no class, or an image that its mask does not fit; named.
        """
        record = self._record(index)
        name = self._record_name(record, index)
        image = _decoded(record[self.image_feature], decode_image, name)
        if image.ndim == 2:
            image = image[..., None]
        if image.shape[-1] == 1:
            image = np.repeat(image, 3, axis=-1)
        label = self._decoded_label(record, name)
        if image.dtype != np.uint8 or image.shape != (*label.shape, 3):
            raise UserError(
                f"{name}: the image is {image.dtype} {image.shape}, its mask {label.shape}; "
                "an image of uint8 (h, w, 3) and a mask of (h, w) are needed"
            )
        return {"image": image, "label": label, "name": name}

    def label(self, index: int) -> np.ndarray:
        """The label map of a record alone, uint8 (h, w): much faster than the whole record."""
        record = self._record(index)
        return self._decoded_label(record, self._record_name(record, index))

    def _record(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)} in split {self.name}")
        return self.records[index]

    def _record_name(self, record: dict[str, Any], index: int) -> str:
        for key in ("name", "file_name", "filename", "image/filename"):
            if isinstance(name := record.get(key), bytes | str):
                return name.decode() if isinstance(name, bytes) else name
        return f"{self.name}[{index}]"

    def _decoded_label(self, record: dict[str, Any], name: str) -> np.ndarray:
        label = _decoded(record[self.label_feature], decode_mask, name)
        if label.ndim == 3 and label.shape[-1] == 1:
            label = label[..., 0]
        if self.label_offset:
            shifted = label.astype(np.int32) + self.label_offset
            label = np.where((label == VOID_LABEL) | (shifted < 0), VOID_LABEL, shifted)
        check_labels(label, self.num_classes, name)
        return label.astype(np.uint8, copy=False)


@dataclasses.dataclass(frozen=True)
class Statistics:
    """What a split's label maps are like.

    Attributes:
      sizes: height and width of each image, int32 (n, 2).
      label_counts: pixels of each label, int64 (256,).
    """

    sizes: np.ndarray
    label_counts: np.ndarray


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A prepared data set.

    `splits` are the names it was prepared with; `split` and `statistics` also take what TFDS makes
    of them: "train+val", "train[:10%]".
    """

    name: str
    class_names: tuple[str, ...]
    splits: tuple[str, ...]
    builder: Any = dataclasses.field(repr=False)
    image_feature: str = "image"
    label_feature: str = "label"
    label_offset: int = 0

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def split(self, name: str) -> Split:
        """The records of a split.

        Raises:
          UserError: there is no such split.
        """
        return Split(
            name=name,
            num_classes=self.num_classes,
            records=_undecoded(self, name),
            image_feature=self.image_feature,
            label_feature=self.label_feature,
            label_offset=self.label_offset,
        )

    def statistics(self, split_name: str) -> Statistics:
        """Sizes and label counts of a split; counted once, then kept beside the records."""
        split = self.split(split_name)
        settings = f"{self.label_feature}{self.label_offset:+}-{self.num_classes}"
        file_name = urllib.parse.quote(f"statistics-{split_name}-{settings}.json", safe="")
        path = Path(self.builder.data_dir) / file_name
        if path.is_file():
            kept = json.loads(path.read_text())
            return Statistics(
                np.array(kept["sizes"], np.int32), np.array(kept["label_counts"], np.int64)
            )
        statistics = _measure(split)
        with contextlib.suppress(PermissionError):  # another's records: count again next time
            arrays = dataclasses.asdict(statistics)
            _write_whole(path, json.dumps({key: value.tolist() for key, value in arrays.items()}))
        return statistics


def open_dataset(data: DataConfig) -> Dataset:
    """The data set that the settings name, prepared if it has not been.

    Raises:
      UserError: no such data set, raw files missing or wrong, or a preparation that failed.
    """
    if data.name in OWN_NAMES:
        builder = _open_own(data)
        names = tuple(builder.info.features["label"].names)
        return Dataset(data.name, names, tuple(builder.info.splits), builder)
    builder = _open_tfds(data)
    for feature in (data.image_feature, data.label_feature):
        if feature not in builder.info.features:
            raise UserError(
                f"{data.name} has no feature {feature!r}, only "
                f"{', '.join(sorted(builder.info.features))}; "
                "see --config.data.image_feature and --config.data.label_feature"
            )
    return Dataset(
        name=data.name,
        class_names=_class_names(data, builder.info.features[data.label_feature]),
        splits=tuple(builder.info.splits),
        builder=builder,
        image_feature=data.image_feature,
        label_feature=data.label_feature,
        label_offset=data.label_offset,
    )


def default_canvas(statistics: Statistics, multiple: int = 32) -> tuple[int, int]:
    """Height and width that hold every image, rounded up to a multiple."""
    height, width = (-(-int(side) // multiple) * multiple for side in statistics.sizes.max(axis=0))
    return height, width


def prepared_dir(data: DataConfig) -> Path:
    """Where prepared records are kept: the setting, $FCN_JAX_DATA or ~/.cache/fcn_jax/data."""
    place = data.prepared_dir or os.environ.get("FCN_JAX_DATA") or "~/.cache/fcn_jax/data"
    return Path(place).expanduser().absolute()


def _open_own(data: DataConfig) -> Any:
    top = prepared_dir(data)
    match data.name:
        case "shapes":
            from fcn_jax.data import shapes

            drawing = Path(shapes.__file__).read_text()  # whoever changes it sees what it draws
            return _Version(top / "shapes", {"drawing": drawing}, []).open(shapes.Shapes, top)
        case "folder":
            from fcn_jax.data import folder

            if not data.root:
                raise UserError("the folder data set needs --config.data.root=DIR")
            options = {
                "root": data.root,
                "validation_fraction": data.validation_fraction,
                "mask_palette": data.mask_palette,
            }
            palette = data.mask_palette
            palette_file = [Path(palette)] if palette and palette != "voc" else []
            version = _version_of(
                top, data, options, lambda root: [*folder.raw_files(root), *palette_file]
            )
            return version.open(folder.Folder, top, **options)
        case _:
            from fcn_jax.data import voc

            config = data.name.partition("/")[2] or "segmentation"
            version = _version_of(top, data, {"root": data.root}, voc.raw_files)
            return version.open(voc.Voc, top, root=data.root, config=config)


def _version_of(
    top: Path, data: DataConfig, settings: dict[str, Any], raw_files: Callable[[Path], list[Path]]
) -> "_Version":
    if not data.root:
        return _Version(top / data.name / "official", settings, [])
    root = Path(data.root).expanduser().resolve()
    base = top / data.name / f"{root.name}-{_digest(settings | {'root': str(root)})}"
    if root.is_dir():
        return _Version(base, settings, raw_files(root))
    kept = sorted(base.glob("*/"), key=lambda path: path.stat().st_mtime)
    if not kept:
        raise UserError(f"{root}: no such folder (--config.data.root)")
    return _Version(base, settings, [], digest=kept[-1].name)  # raw files gone, records still here


class _Version:
    """A data set's records as prepared from raw files in one state."""

    def __init__(self, base: Path, settings: dict[str, Any], files: list[Path], digest: str = ""):
        state = {str(path): [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
        self._folder = base / (digest or _digest(settings | {"files": state}))

    def open(self, builder_class: Any, top: Path, **options: Any) -> Any:
        """The builder of the prepared records."""
        import tensorflow_datasets as tfds

        with _quiet():
            if not (records := self._records()):
                with _locked(self._folder.parent / "lock"):
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


def _open_tfds(data: DataConfig) -> Any:
    import tensorflow_datasets as tfds

    data_dir = Path(data.root).expanduser() if data.root else prepared_dir(data) / "tfds"
    try:
        with _quiet(bars=True):
            builder = tfds.builder(data.name, data_dir=data_dir)
            if not builder.is_prepared():
                with _locked(data_dir / "lock"):
                    builder.download_and_prepare(file_format="array_record")
            return builder
    except tfds.core.registered.DatasetNotFoundError:
        known = [*OWN_NAMES, *tfds.list_builders(with_community_datasets=False)]
        near = difflib.get_close_matches(data.name, known)
        hint = f"did you mean {' or '.join(near)}?" if near else "see --help for the names"
        raise UserError(f"no data set is called {data.name!r}; {hint}") from None
    except Exception as error:  # each of TFDS's builders fails in its own way
        raise UserError(
            f"TFDS cannot prepare {data.name} ({type(error).__name__}: {_first_line(error)}); many "
            "of its sets need TensorFlow for that: where it is installed, run 'tfds build "
            f"{data.name} --file_format=array_record --data_dir=DIR', then set "
            "--config.data.root=DIR"
        ) from error


def _class_names(data: DataConfig, feature: Any) -> tuple[str, ...]:
    names = list(getattr(feature, "names", None) or ())[max(-data.label_offset, 0) :]
    count = data.num_classes or len(names) or (getattr(feature, "num_classes", None) or 0)
    if not count:
        raise UserError(
            f"{data.name} does not say how many classes it has: set --config.data.num_classes"
        )
    return tuple(names) if len(names) == count else tuple(f"class_{i}" for i in range(count))


def _undecoded(dataset: Dataset, split_name: str) -> Any:
    """TFDS's data source of a split, giving images as the encoded bytes they are kept as."""
    import tensorflow_datasets as tfds

    features = dataset.builder.info.features
    skipped = {
        key: tfds.decode.SkipDecoding()
        for key in (dataset.image_feature, dataset.label_feature)
        if isinstance(features[key], tfds.features.Image)
    }
    try:
        with _quiet():
            return dataset.builder.as_data_source(split_name, decoders=skipped)
    except NotImplementedError:
        raise UserError(
            f"{dataset.builder.data_dir} is not in a format for random access; prepare it anew in "
            "another --config.data.root, or with 'tfds convert_format --out_file_format="
            "array_record'"
        ) from None
    except (ValueError, KeyError):
        raise UserError(
            f"{dataset.name} has no split {split_name!r}; it has {', '.join(dataset.splits)}"
        ) from None


def _decoded(value: Any, decode: Callable[[bytes, str], np.ndarray], name: str) -> np.ndarray:
    return decode(value, name) if isinstance(value, bytes) else np.asarray(value)


def _measure(split: Split) -> Statistics:
    sizes = np.zeros((len(split), 2), np.int32)
    counts = np.zeros(256, np.int64)
    with progress_bar(f"measuring {split.name}", len(split)) as bar:
        for index in range(len(split)):
            label = split.label(index)
            sizes[index] = label.shape
            counts += np.bincount(label.reshape(-1), minlength=256)
            bar.advance()
    return Statistics(sizes, counts)


def _write_whole(path: Path, text: str) -> None:
    """Never leaves half a file, whoever writes at the same time."""
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_text(text)
    part.replace(path)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock that the system releases when the process ends, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _quiet(bars: bool = False) -> Iterator[None]:
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
