"""Provenance of a network's weights: the content of `run.json` and of a model file's metadata.

A model file may come from a stranger, so every value is checked when it is read.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from fcn_jax.config import Config, from_dict
from fcn_jax.config.sections import SUB_FOLDER
from fcn_jax.data.palettes import Colour
from fcn_jax.errors import ArgumentError
from fcn_jax.models.build import preprocessing_name

T = TypeVar("T")

MAX_CLASSES = 255
"""Label maps are uint8, and 255 is the ignore index."""

MAX_LABEL_MAPS = 16
MAX_CHANNELS = 256
MAX_TEXT_LENGTH = 1000
MAX_NUMBER = 2**31

KEYS = {"config", "class_names", "channels", "source", "step", "metrics", "train_images", "colours"}


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Settings, classes and origin of a network's weights.

    Args:
        config: settings of the run. For weights of another project, `config.model` describes the
            network that they fit, and the other sections are defaults.
        label_maps: class names by label map; a single label map is called "". Empty if the weights
            are the features of a classifier.
        channels: number of channels of the images.
        source: origin of the weights, for people.
        step: training step; None for a run that has just begun, and weights of another project.
        metrics: scores of an exported run by split, as `evaluate` writes them.
        train_images: number and digest of the images that the network was trained on.
        colours: the colours of the first classes in pictures; VOC's for the others.

    Raises:
        ArgumentError: a label map that cannot name a folder, or a value out of range.
    """

    config: Config
    label_maps: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    channels: int = 3
    source: str = ""
    step: int | None = None
    metrics: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    train_images: str = ""
    colours: tuple[Colour, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.channels <= MAX_CHANNELS:
            raise ArgumentError("channels", self.channels, f"must be in 1…{MAX_CHANNELS}")
        if len(self.label_maps) > MAX_LABEL_MAPS:
            raise ArgumentError(
                "label_maps", f"{len(self.label_maps)} of them", f"must be at most {MAX_LABEL_MAPS}"
            )
        for name, class_names in self.label_maps.items():
            is_folder = re.fullmatch(SUB_FOLDER.expression, name)
            if not is_folder and tuple(self.label_maps) != ("",):
                raise ArgumentError("label_maps", repr(name), f"must be {SUB_FOLDER.description}")
            if not 1 <= len(class_names) <= MAX_CLASSES:
                raise ArgumentError(
                    "label_maps",
                    f"{len(class_names)} classes",
                    f"must have 1 to {MAX_CLASSES} classes each: label maps are 8-bit images, in "
                    "which 255 marks ignored pixels",
                )

    @property
    def backbone(self) -> str:
        return self.config.model.backbone

    @property
    def preprocessing(self) -> str:
        """The preprocessing that the network was trained with; "auto" if it has no name."""
        return preprocessing_name(self.config.model)

    def without_paths(self) -> "Provenance":
        """Removes the folders of the machine that the network was trained on.

        Files are reduced to their names.
        """
        init, palette = self.config.init, self.config.data.mask_palette
        data = dataclasses.replace(
            self.config.data,
            root=None,
            prepared_dir=None,
            mask_palette=(palette and Path(palette).name) or None,
        )
        names = init and ",".join(Path(part).name for part in init.split(","))
        config = dataclasses.replace(self.config, init=names or None, data=data)
        return dataclasses.replace(self, config=config)

    def portable(self) -> "Provenance":
        """Returns the content of a model file: without paths, with the preprocessing's own name."""
        provenance = self.without_paths()
        model = dataclasses.replace(provenance.config.model, preprocessing=self.preprocessing)
        config = dataclasses.replace(provenance.config, model=model)
        return dataclasses.replace(provenance, config=config)

    def to_json(self) -> dict[str, Any]:
        """Returns the values for `json.dumps`, without those that are unknown."""
        only_map = tuple(self.label_maps) == ("",)
        values = {
            "source": self.source,
            "config": dataclasses.asdict(self.config),
            "class_names": self.label_maps[""] if only_map else dict(self.label_maps),
            "channels": self.channels,
            "step": self.step,
            "metrics": self.metrics,
            "train_images": self.train_images,
            "colours": self.colours,
        }
        optional = {name for name, value in values.items() if value in ("", None, {}, ())}
        return {name: values[name] for name in values if name not in optional - {"class_names"}}

    @classmethod
    def from_json(cls, values: Any) -> "Provenance":
        """Returns what `to_json` was called on, after checking every value.

        Raises:
            ValueError: a value of the wrong type, an unknown name or a value out of range.
        """
        values = dict(_checked(values, dict, "it"))
        if "classes" in values:  # the name in model files of earlier versions
            values["class_names"] = values.pop("classes")
        if unknown := values.keys() - KEYS:
            raise ValueError(f"{min(unknown)!r} is not known")
        names = values.get("class_names")
        by_map = names if isinstance(names, dict) else {"": names}
        label_maps = {
            name: tuple(
                _checked(class_name, str, "a class name")
                for class_name in _checked(class_names, list, "class_names")
            )
            for name, class_names in by_map.items()
        }
        metrics = _checked(values.get("metrics", {}), dict, "metrics")
        for scores in metrics.values():
            _checked(scores, dict, "metrics of a split")
        return cls(
            from_dict(_checked(values.get("config"), dict, "config")),
            label_maps,
            _checked(values.get("channels"), int, "channels"),
            _checked(values.get("source", ""), str, "source"),
            _checked(values.get("step", 0), int, "step") or None,
            metrics,
            _checked(values.get("train_images", ""), str, "train_images"),
            _checked_colours(values.get("colours", [])),
        )


def _checked_colours(values: Any) -> tuple[Colour, ...]:
    colours = _checked(values, list, "colours")
    is_colour = [
        isinstance(colour, list)
        and len(colour) == 3
        and all(type(value) is int and 0 <= value <= 255 for value in colour)
        for colour in colours
    ]
    if len(colours) > MAX_CLASSES or not all(is_colour):
        raise ValueError(f"colours are not up to {MAX_CLASSES} triples of 0 to 255")
    return tuple((red, green, blue) for red, green, blue in colours)


def _checked(value: Any, kind: type[T], name: str) -> T:
    """Returns `value`, a `kind` of a possible size; raises ValueError for any other."""
    if type(value) is not kind:
        raise ValueError(f"{name} is {type(value).__name__}, not {kind.__name__}")
    if isinstance(value, str) and len(value) > MAX_TEXT_LENGTH:
        raise ValueError(f"{name} has {len(value)} characters")
    if isinstance(value, int) and not 0 <= value < MAX_NUMBER:
        raise ValueError(f"{name} is out of range")
    return value
