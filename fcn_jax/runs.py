"""The folder of a run: its files, and the check that training may resume it.

DIR/run.json            settings, channels of the images, class names, digests of training images
DIR/plan.json           of volumes only: see `data/plan.py`
DIR/checkpoints/STEP    see `training/checkpoint.py`
DIR/log.jsonl           metrics every few steps
DIR/tensorboard         the same metrics as curves, and pictures of predictions
DIR/train.lock          host and process that train the run; see `training/run_lock.py`
DIR/evaluation          SPLIT.json, SPLIT_images.npz, SPLIT_confusion.png, SPLIT_sheet.png
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fcn_jax.config import Config, settings
from fcn_jax.data.plan import Plan
from fcn_jax.errors import ArgumentError, UserError, format_value
from fcn_jax.pretrained import Provenance, model_file
from fcn_jax.registry import UnregisteredError
from fcn_jax.terminal.atomic_files import write_text
from fcn_jax.terminal.progress import say

PLAN = "plan.json"

FREE_TO_CHANGE = (
    "data.root",
    "data.plan",
    "data.prepared_dir",
    "data.cache",
    "data.workers",
    # Changes only the rounding of sums, as a different number of devices does.
    "model.remat",
    "train.steps_per_dispatch",
    "train.log_every_steps",
    "train.eval_every_steps",
    "train.checkpoint_every_steps",
    "train.keep_checkpoints",
    "eval.batch_size",
    "eval.canvases",
)
"""Settings that may change when a run is resumed, since they do not affect its results."""

SCHEDULE = ("train.steps", "train.epochs")
"""Settings that may change when a run is resumed, although they change its learning rate."""


def read_settings(workdir: Path) -> Provenance:
    """Reads the settings, channels and classes of a run from its run.json.

    Raises:
        UserError: the folder has no run.json, or one that cannot be used.
    """
    path = workdir / "run.json"
    try:
        return Provenance.from_json(json.loads(path.read_text()))
    except FileNotFoundError:
        raise UserError(
            f"{workdir} is not the folder of a run: it has no run.json (give the workdir of the "
            "training)"
        ) from None
    except UnregisteredError as error:
        raise UserError(f"{path}: {error}") from error
    except (ValueError, OSError, RecursionError, UserError) as error:
        raise UserError(
            f"{path} does not hold settings of a run that this version can read: {error}"
        ) from error


def evaluation_folder(workdir: Path) -> Path:
    """Returns the folder that `evaluate` writes to, for the folder of a run or for a model file."""
    is_model_file = workdir.suffix == model_file.SUFFIX and not workdir.is_dir()
    return (workdir.with_suffix("") if is_model_file else workdir) / "evaluation"


def others_tag(workdirs: Sequence[str]) -> str:
    """Returns the end of the names of an ensemble's files, in the folder of its first run.

    It is "_and_b_and_c" for the runs a, b and c, and "" for a single one.
    """
    return "".join(f"_and_{Path(other).name}" for other in workdirs[1:])


def has_checkpoint(workdir: Path) -> bool:
    """Returns whether a folder holds a run with a checkpoint, which can be resumed."""
    return (workdir / "run.json").exists() and bool(_saved_steps(workdir))


def _saved_steps(workdir: Path) -> list[int]:
    """Returns the steps of the finished checkpoints, whose folders have a number as their name."""
    names = (entry.name for entry in (workdir / "checkpoints").glob("*/"))
    return [int(name) for name in names if name.isascii() and name.isdigit()]


def create_or_check(workdir: Path, run: Provenance, num_images: int) -> None:
    """Creates the folder of a run, or checks that it holds this run and can be resumed.

    A resumed run must have the same training images and masks, but the settings in
    `FREE_TO_CHANGE` and `SCHEDULE` may differ. If the number of steps differs, a message says that
    the learning rate changes. A folder whose run stopped before its first checkpoint, for example
    because of a wrong path, may be used for another run.

    Args:
        workdir: the folder.
        run: settings, channels and classes.
        num_images: number of images in an epoch.

    Raises:
        UserError: the folder cannot be written, holds a run with other settings or images, or has a
            run.json that cannot be read.
        ArgumentError: the run is already trained for more steps than the settings give.
    """
    path = workdir / "run.json"
    try:
        held = read_settings(workdir) if path.exists() else None
    except UserError as error:
        raise UserError(f"{error}; give another workdir") from error
    if held is not None and has_checkpoint(workdir):
        differences = [
            f"{old.name} is {format_value(old.value)} there and {format_value(new.value)} now"
            for old, new in zip(settings(held.config), settings(run.config), strict=True)
            if old.value != new.value and old.name not in (*FREE_TO_CHANGE, *SCHEDULE)
        ]
        if held.channels != run.channels:
            differences.append(f"its images have {held.channels} channels, not {run.channels}")
        differences += [
            f"its classes{f' of {name}' if name else ''} are {', '.join(names)}"
            for name, names in held.label_maps.items()
            if run.label_maps.get(name) != names
        ]
        held_names, held_contents = _split_digests(held.train_images)
        names, contents = _split_digests(run.train_images)
        if names and not held_names:
            say(f"note: {path} does not record the training images, so they are not compared")
        elif held_names != names:
            differences.append(
                f"its training images are {held.train_images} there and {run.train_images} now"
            )
        elif contents and not held_contents:
            say(
                f"note: {path} does not record the contents of the training images: only their "
                "names are compared"
            )
        elif held_contents != contents and not differences:
            raise UserError(
                f"{workdir}: the training images or masks have changed since the run began: give "
                "another workdir, or the former images and masks to resume it"
            )
        elif held_contents != contents:
            differences.append("its training images or masks have changed")
        if differences:
            raise UserError(
                f"{workdir} holds a run with other settings ({'; '.join(differences)}): "
                "give another workdir, or the same settings and images to resume it"
            )
        _check_schedule(workdir, held.config, run.config, num_images)
    if held == run:
        return
    text = json.dumps(run.to_json(), indent=2) + "\n"
    try:
        write_text(path, text)
    except UserError as error:
        raise UserError(f"{error}: give a workdir that you may write to") from error


def equal_settings(config: Config) -> dict[str, Any]:
    """Returns the settings, by dotted name, that several hosts must have in common.

    The places of the data may differ: see `Provenance.train_images` for the images themselves.
    """
    return {
        setting.name: setting.value
        for setting in settings(config)
        if setting.name not in ("data.root", "data.prepared_dir")
    }


def save_or_check_plan(workdir: Path, plan: Plan) -> None:
    """Writes the plan of a run's volumes, or checks that the run to resume has the same.

    Raises:
        UserError: the run has another plan, or the file cannot be written.
    """
    path = workdir / PLAN
    if has_checkpoint(workdir) and path.exists() and Plan.load(path) != plan:
        raise UserError(
            f"the plan of the volumes is no longer {path}: set --config.data.plan={path} to resume "
            "the run, or give another workdir"
        )
    plan.save(path)


def describe_images(num_images: int, names_digest: str, contents_digest: str) -> str:
    """Formats `Provenance.train_images`."""
    return f"{num_images} images (names {names_digest}, contents {contents_digest})"


def _split_digests(train_images: str) -> tuple[str, str]:
    """Splits `Provenance.train_images` before the digest of the contents, which old runs lack."""
    names, _, contents = train_images.rstrip(")").partition(", contents ")
    return names, contents


def _check_schedule(workdir: Path, held: Config, config: Config, num_images: int) -> None:
    """Prints a change of the number of steps; raises ArgumentError if more steps are done."""
    before, now = (each.train.total_steps(num_images) for each in (held, config))
    done = max(_saved_steps(workdir))
    if now < done:
        name = "steps" if config.train.epochs is None else "epochs"
        raise ArgumentError(
            f"train.{name}",
            getattr(config.train, name),
            f"ends at step {now}, but {workdir} is trained to step {done}: give more, or another "
            "workdir",
        )
    if before != now:
        change, rate = ("grows", "longer") if before < now else ("shrinks", "shorter")
        say(
            f"the schedule {change} from {before} to {now} steps: the learning rate follows the "
            f"{rate} one"
        )
