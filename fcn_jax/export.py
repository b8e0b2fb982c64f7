"""Exports a run: a folder that holds all there is to know of the network, to use or to publish.

    python -m fcn_jax.export --workdir=DIR --output=OUT [--checkpoint=latest|best|STEP]

OUT/model.safetensors   parameters and batch statistics
OUT/model.json          settings, classes, preprocessing, metrics
OUT/README.md           a model card, with the scores that evaluate has written to DIR/evaluation

On another machine the folder stands for the run: `predict --workdir=OUT`,
`train --config.init=OUT`, and from Python

    from fcn_jax.predict import load_run
    label_map = load_run("OUT")(image)

A run of torchvision's FCN (resnet50 or resnet101, hidden head, stride 8) goes back to PyTorch:

    python -m fcn_jax.export --workdir=DIR --output=fcn.safetensors --format=torchvision

    model = torchvision.models.segmentation.fcn_resnet50(
        weights_backbone=None, num_classes=21, aux_loss=True
    )
    model.load_state_dict(safetensors.torch.load_file("fcn.safetensors"))

aux_loss says whether the run has an auxiliary head.
"""

from absl import flags

from fcn_jax.terminal import cli

if __name__ == "__main__":  # --help and mistakes in flags do not wait for what is imported below
    flags.DEFINE_string("workdir", None, "folder of the run")
    flags.DEFINE_string("output", None, "folder, or file with --format=torchvision, to write")
    flags.DEFINE_string("checkpoint", "latest", "latest, best (by mIoU), or a step")
    flags.DEFINE_enum("format", "fcn_jax", ["fcn_jax", "torchvision"], "of what is written")
    cli.begin()

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from fcn_jax.errors import UserError
from fcn_jax.evaluation.conventions import NATIVE
from fcn_jax.inference.options import WHOLE
from fcn_jax.inference.trained import Predictor, load_run
from fcn_jax.models.backbones.preprocess import COLOURS
from fcn_jax.models.build import preprocessing_name
from fcn_jax.pretrained import saved
from fcn_jax.pretrained.load import flat
from fcn_jax.pretrained.tables import torchvision
from fcn_jax.runs import evaluation_folder
from fcn_jax.terminal.atomic_files import write_whole
from fcn_jax.terminal.progress import say


def main(arguments: list[str]) -> None:
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r} (see --help)")
    options = flags.FLAGS
    if not options.workdir or not options.output:
        raise UserError("--workdir=DIR and --output=OUT are needed (see --help)")
    run = load_run(options.workdir, options.checkpoint)
    output = Path(options.output)
    if options.format == "torchvision":
        export_to_torchvision(run, output)
        say(f"load it into torchvision's fcn_{run.config.model.backbone}({_arguments(run)})")
    else:
        metrics, others = read_metrics(Path(options.workdir), run.step)
        for split, step in others.items():
            say(f"note: the scores on {split} are of step {step}, and left out: evaluate again")
        export(run, output, metrics)
    say(f"{output}: the network of {options.workdir} at step {run.step}")


def export(run: Predictor, folder: Path, metrics: dict[str, Any]) -> None:
    """Writes a run's folder for others. metrics: the contents of evaluation/SPLIT.json by split.

    Raises:
        UserError: the folder cannot be written, or is that of a run.
    """
    if (folder / "run.json").exists():
        raise UserError(f"{folder} is the folder of a run: export to another --output")
    about = run.about
    config: dict[str, Any] = dict(about.config)
    # Paths of the machine that it was trained on say nothing elsewhere.
    init, palette = config["init"], config["data"]["mask_palette"]
    config["init"] = init and ",".join(Path(part).name for part in init.split(","))
    palette = palette and Path(palette).name
    nowhere = {"root": None, "prepared_dir": None, "mask_palette": palette}
    config["data"] = {**config["data"], **nowhere}
    about = dataclasses.replace(about, config=config, metrics=metrics or run.metrics)
    tensors = {name: np.asarray(value) for name, value in flat(run.variables).items()}
    saved.save(folder / saved.FILE, tensors, about)
    card = model_card(about, tensors)
    write_whole(folder / "README.md", lambda part: part.write_text(card, encoding="utf-8"))


def read_metrics(workdir: Path, step: int) -> tuple[dict[str, Any], dict[str, int]]:
    """What evaluate has written of a step, by split; and the splits scored at another step.

    Scores by another convention than native, or of windows and views, are left out: beside the
    others they would be taken for the same thing.

    Raises:
        UserError: a file of scores cannot be read.
    """
    metrics, others = {}, {}
    for path in sorted(evaluation_folder(workdir).glob("*.json")):
        try:
            scores = json.loads(path.read_text(encoding="utf-8"))
            scored_step = int(scores["step"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} cannot be read ({error}): run fcn_jax.evaluate again"
            ) from error
        if (
            scores.get("convention", NATIVE.name) != NATIVE.name
            or scores.get("inference", WHOLE.description) != WHOLE.description
        ):
            continue
        if scored_step == step:
            metrics[path.stem] = scores
        else:
            others[path.stem] = scored_step
    return metrics, others


def model_card(about: saved.About, tensors: dict[str, np.ndarray]) -> str:
    """A README in the form that model hubs show: a header of YAML, then Markdown."""
    model = about.config["model"]
    parameters = sum(
        tensor.size for name, tensor in tensors.items() if not name.endswith(("/mean", "/var"))
    )
    result = "uint8 (h, w)" if "" in about.classes else "{name: uint8 (h, w)}"
    channels = "RGB"
    if about.channels > COLOURS:
        channels += f", then {', '.join(about.config['data']['extra_channels'])}"
    lines = [
        "---",
        "library_name: fcn_jax",
        "pipeline_tag: image-segmentation",
        "tags: [semantic-segmentation, fcn, jax]",
        "---",
        "",
        f"# FCN on {model['backbone']}, trained on {about.config['data']['name']}",
        "",
        f"A fully convolutional network of fcn_jax, {parameters / 1e6:.2f} M parameters, after "
        f"{about.step} training steps.",
        "",
        "```python",
        "from fcn_jax.predict import load_run",
        "",
        'run = load_run("FOLDER")  # this folder',
        f"label_map = run(image)  # uint8 (h, w, {about.channels}) -> {result}",
        "```",
        "",
        "## Network",
        "",
        *(f"- {name}: {_shown(value)}" for name, value in model.items()),
        "",
        f"Images have {about.channels} channels in 0…255, {channels}; the network normalises them "
        f"itself ({model['preprocessing']}).",
        "",
        "## Classes",
        "",
    ]
    for label_map, names in about.classes.items():
        title = f"{label_map}: " if label_map else ""
        lines += [title + ", ".join(f"{index} {name}" for index, name in enumerate(names)), ""]
    lines += ["## Scores", ""]
    if about.metrics:
        names = ("images", "mean_iou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou")
        lines += [f"| split | {' | '.join(names)} |", "| --- " * (len(names) + 1) + "|"]
        for split, scores in about.metrics.items():
            lines.append(f"| {split} | {' | '.join(_shown(scores.get(n, '')) for n in names)} |")
        lines += ["", "At native size, void left out, means over the classes present.", ""]
    else:
        lines += ["Not measured: run `python -m fcn_jax.evaluate` and export again.", ""]
    lines += ["## Settings", "", "```json", json.dumps(about.config, indent=2), "```", ""]
    return "\n".join(lines)


def export_to_torchvision(run: Predictor, path: Path) -> None:
    """Writes the state dict of torchvision's `fcn_resnet50` or `fcn_resnet101`.

    path: a .safetensors, or a .pth where PyTorch is installed.

    Raises:
        UserError: the run is of another network, or the file cannot be written.
    """
    model = run.config.model
    depth = model.backbone.removeprefix("resnet")
    fits = (
        depth in ("50", "101")
        and (model.output_stride, model.skips, model.head) == (8, 0, "hidden")
        and model.upsampling == "interpolate"
        and (model.context_features, model.fusion, run.channels) == (None, "early", 3)
        and set(model.score_scales or ()) <= {1.0}
        and len(run.label_maps) == 1
    )
    if not fits:
        raise UserError(
            "--format=torchvision wants a run of torchvision's FCN: config.model.backbone=resnet50 "
            "or resnet101, output_stride=8, skips=0, head=hidden, upsampling=interpolate"
        )
    if preprocessing_name(model) != "torchvision":
        raise UserError(
            "--format=torchvision wants a run on torchvision's pixels: "
            f"config.model.preprocessing is {model.preprocessing}"
        )
    ours = {name: np.asarray(value) for name, value in flat(run.variables).items()}
    state = torchvision.to_state_dict(torchvision.fcn_resnet(int(depth)), ours)
    if path.suffix == saved.SUFFIX:
        write_whole(path, lambda part: save_file(state, part, metadata={"format": "pt"}))
        return
    if path.suffix != ".pth":
        raise UserError(f"--output={path} must end in {saved.SUFFIX} or .pth")
    try:
        import torch
    except ImportError:
        instead = path.with_suffix(saved.SUFFIX)
        raise UserError(f"writing {path} needs PyTorch; without it, --output={instead}") from None
    tensors = {name: torch.tensor(tensor) for name, tensor in state.items()}
    write_whole(path, lambda part: torch.save(tensors, part))


def _arguments(run: Predictor) -> str:
    auxiliary = run.config.model.auxiliary_weight > 0
    return f"weights_backbone=None, num_classes={len(run.class_names)}, aux_loss={auxiliary}"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(_shown, value)) if isinstance(value, list | tuple) else str(value)


if __name__ == "__main__":
    cli.run(main)
