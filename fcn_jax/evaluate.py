"""Scores a run on a split: every image once, by default whole and at its own size.

    python -m fcn_jax.evaluate --workdir=DIR [--split=NAME] [--checkpoint=latest|best|STEP]
                               [--convention=NAME | --all_conventions] [--boundary]
                               [--scales=0.75,1,1.25] [--flip] [--windows=average|gaussian]

DIR is the folder of a run or of an exported run, or FILE.safetensors, a model file that
`fcn_jax.pretrained` converted. A model file does not name a data set:

    python -m fcn_jax.evaluate --workdir=FILE.safetensors --data=voc --data_root=VOCdevkit

    python -m fcn_jax.evaluate --workdir=A,B,C

scores the mean of the probabilities of several runs, and writes to A/evaluation: SPLIT_and_B_and_C.
json and so on. Several processes score a split together, with the same result: docs/cluster.md.

Prints the paper's four metrics and a table of classes; of volumes also Dice, IoU and the 95 %
Hausdorff distance by case. Writes to DIR/evaluation (FILE/evaluation)

    SPLIT.json            the scores, and their confidence intervals
    SPLIT_images.npz      pixels by image and class, for `python -m fcn_jax.compare`
    SPLIT_confusion.png   the confusion matrix
    SPLIT_reliability.png the accuracy of pixels by the probability of their class
    SPLIT_sheet.png       image | truth | prediction | error of a few images
    SPLIT_report.html     a page with all of these, the training's curves and the worst images

With several label maps, each has its files: SPLIT_MAP.json and so on. Another convention, windows,
scales or mirror images also add to the names: SPLIT_mmseg.json, SPLIT_scales_0.75_1_1.25_flip.json.
`fcn_jax/evaluation/conventions.py` and `fcn_jax/inference/options.py` describe them.

--all_conventions prints the scores under each convention, and writes them to DIR/evaluation/
conventions/SPLIT.json. Conventions that show the network the same images share one pass.

    python -m fcn_jax.evaluate --workdir=DIR --fit_temperature

first fits the temperature of the probabilities on the split, and keeps it in DIR/evaluation/
temperature.json for evaluate and predict (docs/how_sure.md).

A large split can be scored by several jobs on any machines, and their counts added up:

    python -m fcn_jax.evaluate --workdir=DIR --shard=2/8 [...]
    python -m fcn_jax.evaluate --merge DIR...

--shard=2/8 scores every eighth image beginning with the third, of shards 0/8 to 7/8, and writes
DIR/evaluation/shards/SPLIT_shard_2_of_8.npz. --merge reads these files in all the DIRs, and prints
and writes, to the first DIR, what evaluate without shards would, to the last digit.

From Python:

    evaluation = fcn_jax.evaluate("runs/voc", "val")
    evaluation.scores.mean_iou
"""

from absl import flags

from fcn_jax.evaluation import conventions
from fcn_jax.terminal import cli
from fcn_jax.terminal.host_flags import define_host_flags, host_arguments
from fcn_jax.terminal.view_flags import define_view_flags, view_arguments

if __name__ == "__main__":  # --help and wrong flags do not wait for the imports below
    flags.DEFINE_string("workdir", None, "folder of the run; A,B,C for the mean of several runs")
    flags.DEFINE_string("split", None, "split to score (default: the one that training scores)")
    flags.DEFINE_string("data", None, "data set to score on (default: the run's)")
    flags.DEFINE_string("data_root", None, "folder of its raw files (default: the run's)")
    flags.DEFINE_enum(
        "convention",
        "native",
        list(conventions.CONVENTIONS),
        "the way of scoring: "
        + "; ".join(f"{c.name}: {c.description}" for c in conventions.CONVENTIONS.values()),
    )
    flags.DEFINE_bool("all_conventions", False, "score under each convention, and compare them")
    flags.DEFINE_bool("boundary", False, "also compute boundary IoU")
    define_view_flags()
    flags.DEFINE_string("checkpoint", "latest", "latest, best (by mIoU), or a step")
    flags.DEFINE_bool(
        "fit_temperature", False, "first fit the temperature of the probabilities on the split"
    )
    flags.DEFINE_string("shard", None, "i/n: score only shard i, from 0, of n that share the split")
    flags.DEFINE_bool("merge", False, "add up the shards that are in the folders DIR...")
    define_host_flags()
    cli.begin()

import dataclasses
import re
from pathlib import Path
from typing import Any

from fcn_jax.config import DataConfig
from fcn_jax.data.datasets import Dataset, open_dataset
from fcn_jax.data.shard import Shard
from fcn_jax.errors import ArgumentError, UserError
from fcn_jax.evaluation import shards
from fcn_jax.evaluation.evaluator import Evaluation, Evaluator
from fcn_jax.evaluation.report import report, report_conventions
from fcn_jax.evaluation.temperature_fit import fit_temperature
from fcn_jax.inference.options import WHOLE, Inference
from fcn_jax.inference.temperature import FittedTemperature, temperature_path
from fcn_jax.inference.trained import Predictor, load_ensemble, load_run, split_workdirs
from fcn_jax.parallel import agreement, hosts
from fcn_jax.runs import PLAN, evaluation_folder, others_tag, read_settings
from fcn_jax.terminal.progress import say

EQUAL_FLAGS = (
    "workdir",
    "split",
    "data",
    "convention",
    "boundary",
    "checkpoint",
    "shard",
    "all_conventions",
    "windows",
    "window_px",
    "overlap",
    "scales",
    "flip",
    "fit_temperature",
)
"""Flags that all processes must give alike; the data's root may differ."""


def main(arguments: list[str]) -> None:
    options = flags.FLAGS
    if options.merge:
        _merge([Path(argument) for argument in arguments])
        return
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r} (see --help)")
    joining = host_arguments()
    if options.shard and not options.coordinator:
        joining["num_processes"] = 1  # shards are scored independently of each other
    with hosts.joined(**joining):
        _evaluate_and_report()


def _evaluate_and_report() -> None:
    options = flags.FLAGS
    if not options.workdir:
        raise UserError("--workdir=DIR is needed: the folder of a run")
    workdirs = split_workdirs(options.workdir)
    workdir = Path(workdirs[0])
    agreement.check_same_start({f"--{name}": options[name].value for name in EQUAL_FLAGS})
    predictor = load_ensemble(workdirs, options.checkpoint)
    if workdir.is_file() and not options.data:
        raise UserError(
            "--data=NAME is needed, with --data_root=DIR except for shapes: model files name no "
            "data set"
        )
    split = options.split or predictor.config.data.eval_split
    inference = Inference(**view_arguments())
    for flag, default in (("convention", "native"), ("boundary", False), ("shard", None)):
        if options.all_conventions and options[flag].value != default:
            raise UserError(f"--all_conventions cannot be combined with --{flag}")
    shard = Shard.parse(options.shard) if options.shard else None
    with hosts.first_process_first():
        dataset = _dataset(predictor.config.data, options.data, options.data_root, workdir / PLAN)
        images = dataset.statistics(split).names_digest
    agreement.check_same(
        {"the step": predictor.step, "the digest of the images' names": images},
        "give all processes the same run and data set",
    )
    if options.fit_temperature:
        _check_can_fit(inference)
        _check_same_classes(predictor, dataset)
        _fit_temperature(predictor, dataset, split, workdirs)
    elif predictor.temperatures:
        say(str(FittedTemperature.load(temperature_path(workdirs))))
    # Scores on other data, by another convention or inference, or of an ensemble do not replace the
    # run's own.
    name = f"{options.data.replace('/', '_')}_{split}" if options.data else split
    tag = ("" if inference == WHOLE else f"_{inference.tag}") + others_tag(workdirs)
    if options.all_conventions:
        evaluations = evaluate_all(predictor, split, dataset=dataset, inference=inference)
        report_conventions(evaluations, workdir, f"{name}{tag}", step=predictor.step)
        return
    evaluation = evaluate(
        predictor,
        split,
        dataset=dataset,
        convention=options.convention,
        inference=inference,
        boundary=options.boundary,
        shard=shard,
        examples=True,
    )
    if evaluation.convention is not conventions.NATIVE:
        name += f"_{evaluation.convention.name}"
    name += tag
    if shard is None:
        # An ensemble has no settings of its own.
        provenance = predictor.provenance if len(workdirs) == 1 else None
        report(evaluation, workdir, name, step=predictor.step, provenance=provenance)
    else:
        _save_shard(evaluation, workdir, name, shard, _shard_inputs(predictor, dataset, split))


def _check_can_fit(inference: Inference) -> None:
    options = flags.FLAGS
    for name in ("all_conventions", "shard", "convention"):
        if options[name].present:
            raise UserError(f"--fit_temperature cannot be combined with --{name}")
    if inference != WHOLE:
        raise UserError("--fit_temperature cannot be combined with --windows, --scales or --flip")


def _fit_temperature(
    predictor: Predictor, dataset: Dataset, split: str, workdirs: list[str]
) -> None:
    """Fits the temperature of a network on a split, and keeps it with the run."""
    fits = fit_temperature(
        predictor.network, predictor.variables, dataset, split, predictor.config.eval
    )
    for name, fit in fits.items():
        of_map = f" of {name}" if name else ""
        say(
            f"temperature{of_map} {fit.temperature:g}: NLL {fit.nll_before:.4f} → "
            f"{fit.nll_after:.4f} nats a pixel"
        )
    fitted = FittedTemperature(
        {name: fit.temperature for name, fit in fits.items()},
        f"{dataset.name}, split {split}, {len(dataset.split(split))} images",
        predictor.step,
        predictor.weights_digest[:16],
    )
    path = temperature_path(workdirs)
    if hosts.is_first():
        fitted.save(path)
    say(f"kept in {path}; predict and evaluate use it")
    predictor.temperatures = fitted.temperatures


def _shard_inputs(predictor: Predictor, dataset: Dataset, split: str) -> dict[str, Any]:
    """Returns the weights and the data, which must be equal in all shards."""
    return {
        "step": predictor.step,
        "weights": predictor.digest[:16],
        "data": dataset.name,
        "split": split,
        "images": dataset.statistics(split).names_digest,
    }


def _save_shard(
    evaluation: Evaluation, workdir: Path, name: str, shard: Shard, inputs: dict[str, Any]
) -> None:
    if not hosts.is_first():  # all hosts have the same counts; one of them writes
        return
    path = evaluation_folder(workdir) / shards.FOLDER / f"{name}_{shard.tag}.npz"
    shards.EvaluatedShard(shard, inputs, evaluation).save(path)
    total = evaluation.image_count
    say(
        f"step {inputs['step']} on {name}, shard {shard}: {len(evaluation.names)} of {total} images"
    )
    say(f"counts: {path} (with all shards: python -m fcn_jax.evaluate --merge {workdir})")


def _merge(workdirs: list[Path]) -> None:
    """Adds up the shards in the folders of runs, and reports the scores of each split."""
    own = ("workdir", "split", "data", "data_root", "convention", "boundary", "checkpoint", "shard")
    views = ("windows", "window_px", "overlap", "scales", "flip")
    given = [f"--{name}" for name in (*own, *views) if flags.FLAGS[name].present]
    if given or not workdirs:
        beside = f", and no {given[0]}" if given else ""
        raise UserError(f"--merge needs the folders DIR... that hold evaluated shards{beside}")
    folders = {folder.resolve(): folder for folder in map(evaluation_folder, workdirs)}.values()
    for name, paths in shards.find_shards(folders).items():
        parts = {path: shards.EvaluatedShard.load(path) for path in paths}
        evaluation = shards.merge(parts)
        step = next(iter(parts.values())).inputs["step"]
        run = workdirs[0]
        settings = read_settings(run) if (run / "run.json").exists() else None
        report(evaluation, run, name, step=step, provenance=settings)


def _with_plan(data: DataConfig, path: Path) -> DataConfig:
    """Replaces the plan of volumes by that of a run, if it has one."""
    is_there = data.ndim == 3 and path.exists()
    return dataclasses.replace(data, plan=str(path)) if is_there else data


def _dataset(trained_on: DataConfig, name: str | None, root: str | None, plan: Path) -> Dataset:
    """Opens the data set of a run, or the one that the flags name instead.

    plan: the run's, for volumes.
    """
    data = dataclasses.replace(trained_on, name=name or trained_on.name)
    # shapes has no files, so the root of the training data does not apply to it.
    data.root = root or (None if data.name == "shapes" else data.root)
    data = _with_plan(data, plan)
    try:
        return open_dataset(data)
    except UserError as error:
        message = re.sub(r"(--)?(config\.)?data\.root", "--data_root", str(error))
        message = re.sub(r"(--)?(config\.)?data\.name", "--data", message)
        raise UserError(message) from error


def evaluate(
    run: str | Path | Predictor,
    split: str | None = None,
    *,
    dataset: Dataset | None = None,
    checkpoint: str | int = "latest",
    convention: str = "native",
    inference: Inference = WHOLE,
    boundary: bool = False,
    shard: Shard | None = None,
    examples: bool = False,
) -> Evaluation:
    """Scores a trained network on a split of a data set; writes no files.

    Args:
        run: folder of a run or of an exported run, a model file, or a `Predictor`.
        split: name of the split; None for the one that training scores.
        dataset: the data set, see `open_dataset`; None for the one that the run was trained on.
        checkpoint: "latest", "best" (by mIoU), or a step; see `load_run`.
        convention: the way of scoring, a key of `conventions.CONVENTIONS`.
        inference: windows, scales and mirror images to average over.
        boundary: whether to compute boundary IoU as well.
        shard: the share of the images to score; None for all.
        examples: whether to return the worst and the median images as well.

    Returns:
        The scores: `evaluation.scores` are those of the first label map.

    Raises:
        ArgumentError: the split has no images, or the convention or inference cannot be used.
        UserError: the run or the data set cannot be read, or they have different classes.
    """
    predictor = run if isinstance(run, Predictor) else load_run(run, checkpoint)
    config = predictor.config
    if dataset is None:
        plan = None if isinstance(run, Predictor) else Path(run) / PLAN
        dataset = open_dataset(config.data if plan is None else _with_plan(config.data, plan))
    _check_same_classes(predictor, dataset)
    if convention not in conventions.CONVENTIONS:
        known = ", ".join(conventions.CONVENTIONS)
        raise ArgumentError("convention", convention, f"must be one of {known}")
    evaluator = Evaluator(
        predictor.network,
        dataset,
        split or config.data.eval_split,
        config.eval,
        conventions.CONVENTIONS[convention],
        inference,
        boundary=boundary,
        shard=shard,
        mirror_axes=config.volumes.flip_axes,
        temperatures=predictor.temperatures,
    )
    return evaluator(predictor.variables, examples=examples)


def _check_same_classes(predictor: Predictor, dataset: Dataset) -> None:
    for name, trained in predictor.label_maps.items():
        found = dataset.label_maps.get(name, ())
        if found != trained:
            raise UserError(
                f"the network was trained on the classes {', '.join(trained)}; the data set "
                f"{dataset.name} has {', '.join(found)}"
            )
    if dataset.channels != predictor.channels:
        raise UserError(
            f"the network was trained on images of {predictor.channels} channels; those of the "
            f"data set {dataset.name} have {dataset.channels}"
        )


def evaluate_all(
    predictor: Predictor,
    split: str | None = None,
    *,
    dataset: Dataset | None = None,
    inference: Inference = WHOLE,
) -> dict[str, Evaluation]:
    """Scores a network under every convention that can score the split; see `evaluate`.

    Conventions that show the network the same images share one pass over them.

    Returns:
        The scores by convention.
    """
    dataset = dataset or open_dataset(predictor.config.data)
    evaluations: dict[str, Evaluation] = {}
    for name, convention in conventions.CONVENTIONS.items():
        known = [one for one in evaluations.values() if one.convention.sees_as(convention)]
        if known:
            evaluations[name] = known[0].under(convention)
            continue
        try:
            evaluations[name] = evaluate(
                predictor, split, dataset=dataset, convention=name, inference=inference
            )
        except ArgumentError as error:
            if error.argument != "convention":
                raise
            say(f"note: left out: convention {name} {error.problem}")
    return evaluations


cli.make_callable(__name__, evaluate)

if __name__ == "__main__":
    cli.run(main)
