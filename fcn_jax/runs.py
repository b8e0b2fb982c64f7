"""A run's folder: the settings that made it, its checkpoints, and what was written about it.

DIR/run.json            settings, channels of the images, class names
DIR/checkpoints/STEP    see `checkpoint.py`
DIR/log.jsonl           a line of numbers every few steps
DIR/tensorboard         the same as curves, with pictures of predictions
DIR/evaluation          SPLIT.json, SPLIT_images.npz, SPLIT_confusion.png, SPLIT_sheet.png
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from fcn_jax.config import Config, from_dict, settings
from fcn_jax.errors import UserError, shown
from fcn_jax.pretrained import saved

FREE_TO_CHANGE = (
    "data.prepared_dir",
    "data.cache",
    "data.workers",
    # The same sums, which another program may round otherwise, as another number of devices does.
    "model.remat",
    "train.steps_per_dispatch",
    "train.log_every_steps",
    "train.eval_every_steps",
    "train.checkpoint_every_steps",
    "train.keep_checkpoints",
    "eval.batch_size",
    "eval.canvases",
)
"""Settings that a resumed run may change: they do not touch what is computed."""


class RunSettings(NamedTuple):
    """What a run was made with.

    channels: of its images. label_maps: class names by label map; a single one is called "".
    """

    config: Config
    channels: int
    label_maps: dict[str, tuple[str, ...]]


def read_settings(workdir: Path) -> RunSettings:
    """What the run of a folder was made with.

    Raises:
        UserError: no run, or its run.json cannot be read.
    """
    path = workdir / "run.json"
    try:
        stored = json.loads(path.read_text())
        names = stored["class_names"]
        by_map = names if isinstance(names, dict) else {"": names}
        return RunSettings(
            from_dict(stored["config"]),
            stored["channels"],
            {name: tuple(class_names) for name, class_names in by_map.items()},
        )
    except FileNotFoundError:
        raise UserError(
            f"{workdir} is not the folder of a run: it has no run.json (give the --workdir that "
            "fcn_jax.train was given)"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def evaluation_folder(workdir: Path) -> Path:
    """Where evaluate writes about a run's folder, or about a converted file."""
    of_file = workdir.suffix == saved.SUFFIX and not workdir.is_dir()
    return (workdir.with_suffix("") if of_file else workdir) / "evaluation"


def is_begun(workdir: Path) -> bool:
    """Whether a folder holds a run that has saved something to go on from."""
    # An interrupted save leaves a folder whose name is more than a number.
    saved = (entry for entry in (workdir / "checkpoints").glob("*/") if entry.name.isdigit())
    return (workdir / "run.json").exists() and any(saved)


def claim(
    workdir: Path, config: Config, channels: int, label_maps: Mapping[str, tuple[str, ...]]
) -> None:
    """Makes the folder of this run, or checks that it holds a run of the same settings.

    A run that stopped before its first checkpoint, by a wrong path say, does not bind its folder.

    Raises:
        UserError: the folder cannot be written, or holds a run of other settings.
    """
    path = workdir / "run.json"
    if is_begun(workdir):
        held, held_channels, held_maps = read_settings(workdir)
        differences = [
            f"config.{old.name} is {shown(old.value)} there and {shown(new.value)} now"
            for old, new in zip(settings(held), settings(config), strict=True)
            if old.value != new.value and old.name not in FREE_TO_CHANGE
        ]
        if held_channels != channels:
            differences.append(f"its images have {held_channels} channels, not {channels}")
        differences += [
            f"its classes{f' of {name}' if name else ''} are {', '.join(names)}"
            for name, names in held_maps.items()
            if label_maps.get(name) != names
        ]
        if differences:
            raise UserError(
                f"{workdir} holds a run of other settings ({'; '.join(differences)}): "
                "give another --workdir, or the same settings to go on with it"
            )
        return
    made_with = {
        "config": dataclasses.asdict(config),
        "channels": channels,
        "class_names": label_maps[""] if tuple(label_maps) == ("",) else dict(label_maps),
    }
    text = json.dumps(made_with, indent=2)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".tmp")
        unfinished.write_text(text + "\n")
        unfinished.replace(path)
    except OSError as error:
        raise UserError(
            f"cannot write to --workdir={workdir} ({error.strerror}): give a folder that you may "
            "write to"
        ) from error
