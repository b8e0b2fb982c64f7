"""Trains a network, evaluates it and saves it in the folder of the run.

    python -m fcn_jax.train [--config=FILE] [--workdir=DIR] [--config.section.key=value ...]

Without a config, a small FCN-8s learns drawn shapes in about two minutes on two CPU cores. The
same command, started again, resumes an interrupted run. Several processes, on one host or many,
train together: docs/cluster.md. Afterwards:

    python -m fcn_jax.evaluate --workdir=DIR
    python -m fcn_jax.predict  --workdir=DIR --output=OUT PATH...
    tensorboard --logdir=DIR/tensorboard
"""

from absl import flags

from fcn_jax.terminal import cli
from fcn_jax.terminal.host_flags import define_host_flags, host_arguments

# Before the slow imports, so that --help and errors in flags appear at once.
if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "folder of the run (default: runs/NAME OF THE CONFIG)")
    define_host_flags()
    cli.begin(with_config=True)

import contextlib
import dataclasses
import math
import time
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

from fcn_jax import pretrained, runs
from fcn_jax.config import Config
from fcn_jax.data.borders import WithBorders
from fcn_jax.data.datasets import Dataset, Statistics, open_dataset
from fcn_jax.data.volumes import VolumeDataset, with_patch
from fcn_jax.errors import UserError, listed
from fcn_jax.evaluation.evaluator import Evaluation, EvaluationStopped, Evaluator
from fcn_jax.evaluation.report import report
from fcn_jax.inference.trained import load_weights
from fcn_jax.models.build import abstract_model, init_model, preprocessing_name
from fcn_jax.models.ensemble import of_members, stacked
from fcn_jax.models.fcn import suffix
from fcn_jax.models.pure_model import PureModel
from fcn_jax.parallel import agreement, data_parallel, hosts
from fcn_jax.parallel.data_parallel import DATA_AXIS
from fcn_jax.pictures import sheets
from fcn_jax.pictures.colours import palette_of
from fcn_jax.terminal.progress import format_duration, progress_bar, say
from fcn_jax.terminal.signals import StopSignal
from fcn_jax.training import optim
from fcn_jax.training.checkpoint import CheckpointWriter
from fcn_jax.training.class_weights import class_weights
from fcn_jax.training.feed import open_feed, step_chunks
from fcn_jax.training.memory_check import check_memory
from fcn_jax.training.metric_logger import MetricLogger
from fcn_jax.training.run_lock import forget, run_lock
from fcn_jax.training.run_log import RunLog
from fcn_jax.training.train_step import TrainState, create_train_state, make_train_step

MAX_CLASSES_SHOWN = 8
"""The note about classes without a training pixel names at most this many."""


def main(arguments: list[str]) -> None:
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r} (see --help)")
    options = flags.FLAGS
    with hosts.joined(**host_arguments()):
        train(options.config, options.workdir or Path("runs") / cli.config_name())


def train(config: Config, workdir: str | Path) -> Evaluation:
    """Trains the network of a config, or resumes its training, and evaluates it.

        config = fcn_jax.Config()
        config.train.steps = 300
        print(fcn_jax.train(config, "runs/mine").scores.mean_iou)

    Args:
        config: the settings.
        workdir: the folder of the run; created if it does not exist. A folder that holds a run of
            the same settings is resumed from its newest checkpoint.

    Returns:
        The evaluation of the last step on `data.eval_split`.

    Raises:
        ArgumentError: a setting cannot be used.
        UserError: a file is missing or damaged, the disk is full, a metric is not finite, or
            another process trains in the folder. Saved checkpoints stay.
        SystemExit: on Ctrl-C or SIGTERM, after saving a checkpoint. Of several processes, a signal
            to one ends all, after the same step.
    """
    workdir = Path(workdir)
    config.check()
    agreement.check_same_start({"the workdir": workdir.absolute(), **runs.equal_settings(config)})
    with run_lock(workdir):
        return _train(config, workdir)


def _train(config: Config, workdir: Path) -> Evaluation:
    # --- settings and data
    begun = hosts.from_first(runs.has_checkpoint(workdir))
    weights = load_weights(config.init) if config.init and not begun else None
    config = _with_preprocessing(config, workdir if begun else None, weights)
    data_parallel.check_batch_divides(
        config.train.batch_size, "train.batch_size", config.train.accumulation_steps
    )
    with hosts.first_process_first():
        dataset = open_dataset(config.data)
        records = dataset.split(config.data.train_split)
        statistics = dataset.statistics(config.data.train_split)
    config = with_patch(config, dataset)
    if not len(records):
        raise UserError(f"split {config.data.train_split} of {dataset.name} has no images")
    _check_labels(dataset, config.data.train_split, statistics)
    if config.loss.border_class is not None:
        records = WithBorders(records, config.loss.border_class, config.loss.border_sigma_px)
    total_steps = config.train.total_steps(len(records))
    num_classes, channels = dataset.num_classes, dataset.channels
    images = runs.describe_images(len(records), statistics.names_digest, statistics.contents_digest)
    run = pretrained.Provenance(
        config, dataset.label_maps, channels, train_images=images, colours=dataset.colours
    )

    # --- model, optimizer, steps
    shape: Any = {"channels": channels, "ndim": dataset.ndim}
    network = PureModel(abstract_model(config.model, num_classes, **shape, axis_name=DATA_AXIS))
    optimizer = optim.build_optimizer(config.optim, network.decay_mask, total_steps)
    weights_by_map = class_weights(config.loss.class_weights, num_classes, statistics.label_counts)
    train_step = make_train_step(network, optimizer, config, weights_by_map)
    members = config.train.members
    ensemble = of_members(network, members)
    first_state = jax.jit(
        partial(create_train_state, optimizer=optimizer, members=members), donate_argnums=0
    )
    state_shapes = jax.eval_shape(first_state, ensemble.variables)
    check_memory(train_step, state_shapes, records[0], statistics.sizes, config)
    agreement.check_same({"the training set": images}, "give all processes the same images")
    with hosts.first_process_first():
        plan = None
        if isinstance(dataset, VolumeDataset):
            plan = dataclasses.replace(dataset.plan, patch=config.volumes.patch or ())
            dataset = dataclasses.replace(dataset, plan=plan)
        evaluate = Evaluator(
            ensemble, dataset, config.data.eval_split, config.eval, temperatures={}
        )
        # Only now, because the settings of the model, the loss and the evaluation are checked.
        runs.create_or_check(workdir, run, len(records))
        if plan is not None:
            runs.save_or_check_plan(workdir, plan)
    learning_rate = jax.jit(optim.learning_rate_schedule(config.optim, total_steps))

    # --- start or resume
    with CheckpointWriter(workdir / "checkpoints", config.train.keep_checkpoints) as checkpoints:
        if checkpoints.latest is not None:
            state = checkpoints.restore(state_shapes)
        else:
            first = [
                PureModel(
                    init_model(config.model, num_classes, **shape, seed=config.of_member(n).seed)
                ).variables
                for n in range(members)
            ]
            if weights is not None:
                first, (loaded, *_) = zip(*map(weights.apply, first), strict=True)
                notes = weights.notes(config.model, dataset.label_maps)
                say("\n".join([loaded, *(f"note: {note}" for note in notes)]))
                weights = None  # frees memory: half a gigabyte for VGG16
            state = first_state(first[0] if members == 1 else stacked(first))
            del first  # frees memory: arrays from a weight file are on the host, not donated
        start_step = int(state.step)
        if start_step >= total_steps:
            say(f"{workdir} is trained: all {total_steps} steps are done")
        else:
            resumed = f", resumed from step {start_step}" if start_step else ""
            headline = _headline(config, dataset, network)
            say(f"{headline} · {total_steps} steps{resumed} · {workdir}")

        # --- the loop
        eval_every = config.train.eval_every_steps or max(1, math.ceil(total_steps / 10))
        save_every = config.train.checkpoint_every_steps or eval_every
        steps_left = range(start_step, total_steps)
        feed = open_feed(train_step, records, statistics.sizes, config, steps_left)
        evaluation = None
        is_alone = hosts.count() == 1  # several hosts save, and end, together
        save_unscored = partial(_save_unscored, workdir, checkpoints, total_steps)
        started = time.monotonic()
        with (
            contextlib.closing(feed),
            RunLog(workdir, start_step) as log,
            StopSignal("step") as stop,
            contextlib.closing(agreement.Lockstep()) as lockstep,
            progress_bar("training", total_steps, "steps", initial=start_step) as bar,
        ):
            logger = MetricLogger(config, total_steps, log, bar, checkpoints, learning_rate)

            def should_stop() -> bool:
                return bool(lockstep.agreed(stop.requested))

            def end() -> NoReturn:
                """Ends with the status of a process that the signal has ended."""
                hosts.barrier()
                raise hosts.AgreedExit(128 + lockstep.number)

            def evaluate_step(step: int) -> Evaluation | None:
                with logger.paused(), contextlib.suppress(EvaluationStopped):
                    if not should_stop():
                        variables, last = (state.params, state.batch_stats), step == total_steps
                        with stop.abandoned(partial(save_unscored, state) if is_alone else None):
                            evaluation = evaluate(variables, should_stop, examples=last)
                        _log_evaluation(log, step, evaluation, dataset)
                        return evaluation
                return None

            def is_due(step: int) -> bool:
                return step == total_steps or (step > 0 and step % eval_every == 0)

            if is_due(start_step) and not hosts.from_first(log.has_evaluation):
                # A signal ended the run in this evaluation.
                evaluation = evaluate_step(start_step)
                if evaluation is not None:
                    checkpoints.add_score(start_step, evaluation.scores.mean_iou)
                if should_stop():
                    end()
            if len(steps_left):
                bar.show_activity("compiling the first step")
            every = eval_every, save_every
            for steps in step_chunks(start_step, total_steps, feed.steps_per_call, every):
                # The first step waits for its compilation, and nothing is lost with it.
                is_first = is_alone and steps[0] == start_step + 1
                step = steps[-1]
                with lockstep.step(step):
                    with stop.abandoned(partial(forget, workdir) if is_first else None):
                        state, step_metrics = feed(state, len(steps))
                    logger.dispatched(steps, step_metrics)
                last = step == total_steps
                evaluation = evaluate_step(step) if is_due(step) else None
                stopping = should_stop() and (evaluation is None or not last)
                if last or step % save_every == 0 or stopping:
                    mean_iou = None if evaluation is None else evaluation.scores.mean_iou
                    with logger.paused():
                        checkpoints.save(state, mean_iou)
                if stopping:
                    checkpoints.wait()
                    say(f"stopped and saved at step {step} of {total_steps}: start again to resume")
                    end()
        checkpoints.wait()

    # --- the result
    if evaluation is None:
        evaluation = evaluate((state.params, state.batch_stats), examples=True)
    elif start_step < total_steps:
        elapsed = format_duration(time.monotonic() - started)
        say(f"trained {total_steps - start_step} steps in {elapsed}")
    report(evaluation, workdir, config.data.eval_split, step=total_steps, provenance=run)
    say(f"label your images: python -m fcn_jax.predict --workdir={workdir} --output=OUT PATH...")
    return evaluation


def _check_labels(dataset: Dataset, split: str, statistics: Statistics) -> None:
    """Prints the classes without a training pixel; raises UserError if there is no other class."""
    for label_map, class_names in dataset.label_maps.items():
        counts = statistics.label_counts[label_map]
        untrained = [name for name, count in zip(class_names, counts, strict=False) if not count]
        if len(untrained) == len(class_names):
            masks = f"masks of {label_map}" if label_map else "masks"
            raise UserError(
                f"all {masks} of split {split} of {dataset.name} are void (255) everywhere: there "
                "is nothing to learn; python -m fcn_jax.doctor examines them"
            )
        if untrained:
            of_map = f" of {label_map}" if label_map else ""
            say(
                f"note: no training pixel{of_map} is {listed(untrained, MAX_CLASSES_SHOWN)}; "
                "python -m fcn_jax.doctor examines the masks"
            )


def _with_preprocessing(
    config: Config, begun: Path | None, weights: pretrained.Weights | None
) -> Config:
    """Replaces `model.preprocessing=auto` by that of the resumed run, weights or backbone."""
    if config.model.preprocessing != "auto":
        return config
    if begun is not None:
        resolved = runs.read_settings(begun).config.model.preprocessing
    elif config.data.ndim == 3:
        resolved = "none"  # the plan normalises volumes
    elif weights is not None:
        resolved = weights.provenance.preprocessing
    else:
        resolved = preprocessing_name(config.model)
    model = dataclasses.replace(config.model, preprocessing=resolved)
    return dataclasses.replace(config, model=model)


def _save_unscored(
    workdir: Path, checkpoints: CheckpointWriter, total_steps: int, state: TrainState
) -> None:
    """Saves a state whose evaluation is abandoned, at the end of the process."""
    step = int(state.step)
    if step != checkpoints.latest:
        checkpoints.save(state, None)
    checkpoints.wait()
    say(f"stopped and saved at step {step} of {total_steps}: start again to resume")
    forget(workdir)


def _headline(config: Config, dataset: Dataset, network: PureModel) -> str:
    parameters = sum(leaf.size for leaf in jax.tree.leaves(network.variables[0]))
    classes = " and ".join(map(str, dataset.num_classes.values()))
    model = config.model
    decoder = f"{model.skips} skips" if model.decoder == "fcn" else "U-Net decoder"
    members = f"{config.train.members} members · " if config.train.members > 1 else ""
    return (
        f"{dataset.name}: {len(dataset.split(config.data.train_split))} images, "
        f"{classes} classes · {members}{model.backbone}, {decoder}, "
        f"{parameters / 1e6:.2f} M parameters · {hosts.description()}"
    )


def _log_evaluation(log: RunLog, step: int, evaluation: Evaluation, dataset: Dataset) -> None:
    names = ("pixel_accuracy", "mean_accuracy", "mean_iou", "frequency_weighted_iou")
    numbers: dict[str, float] = {}
    for label_map, scored in evaluation.by_map.items():
        scores, ending = scored.scores, suffix(label_map)
        numbers |= {f"{name}{ending}": getattr(scores, name) for name in names}
        sheet = sheets.sheet(
            scored.sheet_rows, dataset.label_maps[label_map], palette_of(scored.colours)
        )
        log.picture(f"predictions{ending}", step, np.asarray(sheet))
        of_label_map = f" of {label_map}" if label_map else ""
        say(
            f"step {step}: mIoU{of_label_map} {scores.mean_iou:.3f}, "
            f"pixel accuracy {scores.pixel_accuracy:.3f}"
        )
    log.write("eval", step, numbers)


cli.make_callable(__name__, train)

if __name__ == "__main__":
    cli.run(main)
