"""Data sets by name: prepared on first use, then read record by record.

    dataset = open_dataset(config.data)
    dataset.label_maps                   # {"": ("background", "aeroplane", …)}
    record = dataset.split("train")[0]   # image uint8 (h, w, c), label uint8 (h, w), name

If there are several label maps, `label` is uint8 (h, w, m), and `label_maps` has their names.

`registry.py` lists the data sets of this package; `raw.py` shows how to register another. Any other
name is TFDS's. Prepared records are ArrayRecord files; neither writing nor reading those of
registered data sets imports TensorFlow.
"""

import contextlib
import dataclasses
import difflib
import hashlib
import json
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax import registry
from fcn_jax.config import DataConfig, check_ranges
from fcn_jax.data.channels import channel_feature
from fcn_jax.data.labels import by_map, label_feature
from fcn_jax.data.palettes import Colour
from fcn_jax.data.prepared import locked, open_prepared, prepared_dir, quiet_tfds
from fcn_jax.data.raw import expanded
from fcn_jax.data.splits import Split
from fcn_jax.errors import UserError, format_value
from fcn_jax.terminal.atomic_files import write_text
from fcn_jax.terminal.progress import progress_bar


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Image sizes and label counts of a split.

    Attributes:
      sizes: height and width of each image, int32 (n, 2); three sizes of a volume.
      label_counts: pixels of each label, int64 (256,), by label map.
      names_digest: identifies the names of the images and their order.
      contents_digest: identifies the images, their extra channels and masks, and their order.
    """

    sizes: np.ndarray
    label_counts: Mapping[str, np.ndarray]
    names_digest: str = ""
    contents_digest: str = ""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A prepared data set.

    `split` and `statistics` also take TFDS's expressions: "train+val", "train[:10%]".

    Attributes:
      name: as in `DataConfig.name`.
      label_maps: class names by label map, the main one first; a single one is called "".
      splits: the names of the splits.
      builder: TFDS's builder, which reads the records.
      image_feature: the name of the image's feature in the records.
      channel_features: the names of the features of extra channels.
      label_features: the names of the label maps' features, in the order of `label_maps`.
      label_offset: is added to every label.
      colours: the colours of the classes, if the data set defines them.
      ndim: number of spatial axes: 2 for images, 3 for volumes (`volumes.VolumeDataset`).
    """

    name: str
    label_maps: Mapping[str, tuple[str, ...]]
    splits: tuple[str, ...]
    builder: Any = dataclasses.field(repr=False)
    image_feature: str = "image"
    channel_features: tuple[str, ...] = ()
    label_features: tuple[str, ...] = ("label",)
    label_offset: int = 0
    colours: tuple[Colour, ...] = ()
    ndim: int = 2

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names of the main label map."""
        return next(iter(self.label_maps.values()))

    @property
    def num_classes(self) -> dict[str, int]:
        """Number of classes by label map."""
        return {name: len(class_names) for name, class_names in self.label_maps.items()}

    @property
    def channels(self) -> int:
        """Number of channels of the images, RGB included."""
        features = self.builder.info.features
        return 3 + sum(features[name].shape[-1] for name in self.channel_features)

    def split(self, name: str) -> Any:
        """Opens the records of a split, a `Split`.

        Raises:
          UserError: there is no such split.
        """
        return Split(
            name=name,
            num_classes=dict(zip(self.label_features, self.num_classes.values(), strict=True)),
            records=_undecoded(self, name),
            image_feature=self.image_feature,
            channel_features=self.channel_features,
            label_offset=self.label_offset,
            place=str(self.builder.data_dir),
        )

    def statistics(self, split_name: str) -> Statistics:
        """Sizes and label counts of a split, counted once and then stored with the records."""
        split = self.split(split_name)
        settings = "-".join(
            f"{feature}{self.label_offset:+}-{count}"
            for feature, count in split.num_classes.items()
        )
        file_name = urllib.parse.quote(f"counts-{split_name}-{settings}.json", safe="")
        path = Path(self.builder.data_dir) / file_name
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            stored = json.loads(path.read_text())  # not yet, or damaged: counted below
            sizes = np.array(stored["sizes"], np.int32).reshape(len(split), 2)
            counts = {name: np.array(n, np.int64) for name, n in stored["label_counts"].items()}
            return Statistics(sizes, counts, stored["names_digest"], stored["contents_digest"])
        statistics = _measure(split, tuple(self.label_maps))
        listed_counts = {name: n.tolist() for name, n in statistics.label_counts.items()}
        document = json.dumps(
            {
                "sizes": statistics.sizes.tolist(),
                "label_counts": listed_counts,
                "names_digest": statistics.names_digest,
                "contents_digest": statistics.contents_digest,
            }
        )
        with contextlib.suppress(UserError):  # the records belong to another user
            write_text(path, document)
        return statistics


def open_dataset(data: DataConfig | str) -> Dataset:
    """Opens the data set that `data.name` names, prepared first if it has not been.

    The names are those registered by `@register_dataset`, then TFDS's.

    Args:
      data: the settings `data`; or a name, for `DataConfig(name=name)`.

    Raises:
      UserError: no such data set, raw files missing or wrong, or a preparation that failed.
      TypeError: `data` is neither.
    """
    if isinstance(data, str):
        data = DataConfig(name=data)
    if not isinstance(data, DataConfig):
        raise TypeError(
            f"`data` is a {type(data).__name__}, and must be a name or a DataConfig: give "
            "config.data"
        )
    check_ranges(data, "data.")
    if data.name not in registry.datasets:
        return _open_tfds(data)
    if data.ndim == 3:
        return registry.datasets[data.name](data)
    records = open_prepared(data)
    return Dataset(
        name=data.name,
        label_maps=records.label_maps,
        splits=tuple(records.builder.info.splits),
        builder=records.builder,
        channel_features=tuple(channel_feature(name) for name in records.channels),
        label_features=tuple(label_feature(name) for name in records.label_maps),
        colours=records.colours,
    )


def _open_tfds(data: DataConfig) -> Dataset:
    builder = _tfds_builder(data)
    if data.extra_channels or data.label_maps != ("masks",):
        raise UserError(
            f"config.data.extra_channels (={format_value(data.extra_channels)}) and "
            f"config.data.label_maps (={format_value(data.label_maps)}) do not apply to "
            f"{data.name}: its images are RGB and have one label map"
        )
    for feature in (data.image_feature, data.label_feature):
        if feature not in builder.info.features:
            raise UserError(
                f"{data.name} has no feature {feature!r}, only "
                f"{', '.join(sorted(builder.info.features))}; "
                "see --config.data.image_feature and --config.data.label_feature"
            )
    return Dataset(
        name=data.name,
        label_maps={"": _class_names(data, builder.info.features[data.label_feature])},
        splits=tuple(builder.info.splits),
        builder=builder,
        image_feature=data.image_feature,
        label_features=(data.label_feature,),
        label_offset=data.label_offset,
    )


def _tfds_builder(data: DataConfig) -> Any:
    import tensorflow_datasets as tfds

    data_dir = expanded(data.root, "data.root") if data.root else prepared_dir(data) / "tfds"
    try:
        with quiet_tfds(bars=True):
            builder = tfds.builder(data.name, data_dir=data_dir)
            if not builder.is_prepared():
                with locked(data_dir / "lock"):
                    builder.download_and_prepare(file_format="array_record")
            return builder
    except tfds.core.registered.DatasetNotFoundError:
        known = [*registry.datasets.names, *tfds.list_builders(with_community_datasets=False)]
        near = difflib.get_close_matches(data.name, known)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UserError(
            f"no data set is called {data.name!r}; if your own code registers it, "
            f"{registry.IMPORT_FIRST}{hint}"
        ) from None
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
    """TFDS's data source of a split, which leaves images encoded."""
    import tensorflow_datasets as tfds

    features = dataset.builder.info.features
    skipped = {
        key: tfds.decode.SkipDecoding()
        for key in (dataset.image_feature, *dataset.channel_features, *dataset.label_features)
        if isinstance(features[key], tfds.features.Image)
    }
    try:
        with quiet_tfds():
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


def _measure(split: Split, label_maps: Sequence[str]) -> Statistics:
    sizes = np.zeros((len(split), 2), np.int32)
    counts = {name: np.zeros(256, np.int64) for name in label_maps}
    names, contents = hashlib.sha256(), hashlib.sha256()
    with progress_bar(f"measuring {split.name}", len(split)) as bar:
        for index in range(len(split)):
            names.update(split.record_name(index).encode(errors="surrogateescape") + b"\n")
            label = split.label(index)
            sizes[index] = label.shape[:2]
            mask = repr(label.shape).encode() + label.tobytes()
            for content in (*split.stored_images(index), mask):
                contents.update(hashlib.sha256(content).digest())
            for name, values in by_map(label, label_maps).items():
                counts[name] += np.bincount(values.reshape(-1), minlength=256)
            bar.advance()
    return Statistics(sizes, counts, names.hexdigest()[:16], contents.hexdigest()[:16])


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]
