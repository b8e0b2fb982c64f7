"""Exports a run as a folder that contains everything needed to use the network.

    python -m fcn_jax.export --workdir=DIR --output=OUT [--checkpoint=latest|best|STEP]

OUT/model.safetensors   parameters and batch statistics
OUT/model.json          settings, classes, preprocessing, metrics
OUT/README.md           a model card, with the scores that evaluate has written to DIR/evaluation

The folder can be used in place of the run, also on another machine: with `predict --workdir=OUT`,
with `train --config.init=OUT`, and from Python

    import fcn_jax
    label_map = fcn_jax.load_run("OUT")(image)

Networks for other programs take --format:

    onnx         OUT.onnx: from RGB bytes of any size to classes, for any ONNX runtime
    stablehlo    OUT.stablehlo: the same for jax.export, on CPU, CUDA and TPU
    pytorch      OUT/: weights, operations and a plain PyTorch module that runs them
    torchvision  OUT.safetensors or .pth: the state dict of torchvision's fcn_resnet50 or 101
    torchfcn     OUT.safetensors or .pth: the state dict of torchfcn's FCN32s, 16s, 8s, 8sAtOnce
"""

from absl import flags

from fcn_jax.terminal import cli

if __name__ == "__main__":  # --help and mistakes in flags do not wait for the imports below
    flags.DEFINE_string("workdir", None, "folder of the run, or model file")
    flags.DEFINE_string("output", None, "folder or file to write, as the format wants")
    flags.DEFINE_string("checkpoint", "latest", "latest, best (by mIoU), or a step")
    flags.DEFINE_integer("member", None, "of a run of several members: export this one, from 0")
    flags.DEFINE_enum(
        "format",
        "fcn_jax",
        ["fcn_jax", "onnx", "stablehlo", "pytorch", "torchvision", "torchfcn"],
        "format to write",
    )
    cli.begin()

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from fcn_jax import formats
from fcn_jax.data.palettes import voc_palette
from fcn_jax.errors import UserError
from fcn_jax.evaluation.conventions import NATIVE
from fcn_jax.formats import onnx_file, stablehlo, torch_names
from fcn_jax.inference.options import WHOLE
from fcn_jax.inference.temperature import FittedTemperature, temperature_path
from fcn_jax.inference.trained import Predictor, check_single, load_run
from fcn_jax.models.backbones.preprocess import COLOURS
from fcn_jax.models.build import abstract_model
from fcn_jax.models.pure_model import PureModel
from fcn_jax.models.tape import Tape, UnknownLayerError, record
from fcn_jax.pretrained import Provenance, model_file
from fcn_jax.runs import evaluation_folder
from fcn_jax.terminal.atomic_files import write_text, write_whole
from fcn_jax.terminal.progress import say

CARD_BEGINNING = "---\nlibrary_name: fcn_jax\n"
"""The first lines of a model card; a README.md without them is never replaced."""


def main(arguments: list[str]) -> None:
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r} (see --help)")
    options = flags.FLAGS
    if not options.workdir or not options.output:
        raise UserError("--workdir=DIR and --output=OUT are needed (see --help)")
    workdir, output = Path(options.workdir), Path(options.output)
    predictor = load_run(workdir, options.checkpoint)
    if predictor.config.data.ndim == 3:
        raise UserError(f"{workdir} is trained on volumes, and export is for images")
    if options.member is not None:
        predictor = predictor.member(options.member)
    if options.format != "fcn_jax":
        check_single(predictor, workdir)
        if workdir.resolve() in (output.resolve(), *output.resolve().parents):
            raise UserError(f"--output={output} is the run itself, or inside it: give another file")
        say(_EXPORTERS[options.format](predictor, output))
    else:
        # The scores of a run are those of all its members together.
        of_run = options.member is None
        metrics, other_steps = read_metrics(workdir, predictor.step) if of_run else ({}, {})
        for split, step in other_steps.items():
            say(
                f"note: the scores on {split} are not exported, because they are of step {step}: "
                "evaluate again"
            )
        export(predictor, output, metrics)
        copy_temperature(workdir, predictor, output)
    say(f"{output}: the network of {workdir} at step {predictor.step}")


def export(predictor: Predictor, folder: Path, metrics: dict[str, Any]) -> None:
    """Writes the folder of an exported run.

    Args:
        predictor: the run.
        folder: the folder to write.
        metrics: contents of evaluation/SPLIT.json by split. If empty, `predictor.metrics` are used,
            which an exported run has.

    Raises:
        UserError: the folder cannot be written, is the folder of a run, or contains files that
            would be replaced and that `export` did not write.
    """
    if (folder / "run.json").exists():
        raise UserError(f"{folder} is the folder of a run: give another --output")
    card_path = folder / "README.md"
    if card_path.exists() and not _is_model_card(card_path):
        raise UserError(
            f"{card_path} exists and is not the model card of an exported run: give another "
            "--output"
        )
    provenance = dataclasses.replace(
        predictor.provenance.portable(), metrics=metrics or predictor.metrics
    )
    tensors = predictor.tensors()
    model_file.save(folder / model_file.FILE, tensors, provenance)
    card = model_card(provenance, tensors)
    write_text(card_path, card)


def copy_temperature(workdir: Path, predictor: Predictor, folder: Path) -> None:
    """Writes the temperature that was fitted for a network into its exported folder.

    Args:
        workdir: the run that was exported.
        predictor: its network, or a member of it, for which no temperature was fitted.
        folder: the exported folder.

    Raises:
        UserError: the file cannot be written.
    """
    if predictor.temperatures:
        fitted = FittedTemperature.load(temperature_path([str(workdir)]))
        fitted.save(temperature_path([str(folder)]))


def _is_model_card(path: Path) -> bool:
    try:
        return path.read_text(encoding="utf-8").startswith(CARD_BEGINNING)
    except (OSError, ValueError):
        return False


def read_metrics(workdir: Path, step: int) -> tuple[dict[str, Any], dict[str, int]]:
    """Reads the scores that evaluate has written for whole images under the native convention.

    Scores under other conventions, of windows or of several views are skipped, because they are not
    comparable.

    Args:
        workdir: folder of the run, or a model file.
        step: the step to export.

    Returns:
        (scores of this step by split, step of the scores of each other split)

    Raises:
        UserError: a file of scores cannot be read.
    """
    metrics, other_steps = {}, {}
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
            other_steps[path.stem] = scored_step
    return metrics, other_steps


def model_card(provenance: Provenance, tensors: dict[str, np.ndarray]) -> str:
    """Returns the model card: a YAML header as model hubs read it, then Markdown."""
    config = dataclasses.asdict(provenance.config)
    parameters = sum(
        tensor.size for name, tensor in tensors.items() if not name.endswith(("/mean", "/var"))
    )
    result = "uint8 (h, w)" if "" in provenance.label_maps else "{name: uint8 (h, w)}"
    origin = f"weights of {provenance.source}"
    steps = ""
    if provenance.step is not None:
        origin = f"trained on {config['data']['name']}"
        steps = f", after {provenance.step} training steps"
    channels = "RGB"
    if provenance.channels > COLOURS:
        channels += f", then {', '.join(config['data']['extra_channels'])}"
    lines = [
        f"{CARD_BEGINNING}pipeline_tag: image-segmentation",
        "tags: [semantic-segmentation, fcn, jax]",
        "---",
        "",
        f"# FCN on {provenance.backbone}, {origin}",
        "",
        f"A fully convolutional network of fcn_jax, {parameters / 1e6:.2f} M parameters{steps}.",
        "",
        "```python",
        "import fcn_jax",
        "",
        'predictor = fcn_jax.load_run("FOLDER")  # this folder',
        f"label_map = predictor(image)  # uint8 (h, w, {provenance.channels}) -> {result}",
        "```",
        "",
        "## Network",
        "",
        *(f"- {name}: {_format(value)}" for name, value in config["model"].items()),
        "",
        f"Images have {provenance.channels} channels in 0…255, {channels}; the network normalises "
        f"them itself ({provenance.preprocessing}).",
        "",
        "## Classes",
        "",
    ]
    for label_map, names in provenance.label_maps.items():
        title = f"{label_map}: " if label_map else ""
        lines += [title + ", ".join(f"{index} {name}" for index, name in enumerate(names)), ""]
    lines += ["## Scores", ""]
    if provenance.metrics:
        names = ("images", "mean_iou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou")
        lines += [f"| split | {' | '.join(names)} |", "| --- " * (len(names) + 1) + "|"]
        for split, scores in provenance.metrics.items():
            lines.append(f"| {split} | {' | '.join(_format(scores.get(n, '')) for n in names)} |")
        lines += [
            "",
            "Scores are computed at the images' native size, without void pixels. Means are over "
            "the classes present.",
            "",
        ]
    else:
        lines += ["Not measured: run `python -m fcn_jax.evaluate` and export again.", ""]
    lines += ["## Settings", "", "```json", json.dumps(config, indent=2), "```", ""]
    return "\n".join(lines)


def export_to_torchvision(predictor: Predictor, path: Path) -> str:
    """Writes the state dict of torchvision's `fcn_resnet50` or `fcn_resnet101`.

    Args:
        predictor: the run.
        path: the file to write: .safetensors, or .pth if PyTorch is installed.

    Returns:
        A sentence that says what the file is for.

    Raises:
        UserError: the run's network is not torchvision's FCN, or the file cannot be written.
    """
    call, state = torch_names.torchvision_state(predictor.provenance, predictor.tensors())
    torch_names.save_state(state, path)
    return f"load it into {call}"


def export_to_torchfcn(predictor: Predictor, path: Path) -> str:
    """Writes the state dict of one of torchfcn's networks; see `export_to_torchvision`."""
    call, state = torch_names.torchfcn_state(predictor.provenance, predictor.tensors())
    torch_names.save_state(state, path)
    return f"load it into {call}"


def export_to_onnx(predictor: Predictor, path: Path) -> str:
    """Writes an ONNX file; see `formats/onnx_file.py` and `export_to_torchvision`."""
    _check_suffix(path, ".onnx")
    label_maps = {name: list(names) for name, names in predictor.label_maps.items()}
    most = max(map(len, label_maps.values()))
    metadata = {
        "class_names": json.dumps(label_maps),
        "colours": json.dumps(voc_palette()[:most].tolist()),
        "source": predictor.provenance.source,
    }
    if predictor.temperatures:
        metadata["temperatures"] = json.dumps(dict(predictor.temperatures))
    data = onnx_file.build(
        _tape(predictor), predictor.tensors(), channels=predictor.channels, metadata=metadata
    )
    write_whole(path, lambda part: part.write_bytes(data))
    return f"{path}: opset {onnx_file.OPSET}, {len(data) / 1e6:.1f} MB"


def export_to_stablehlo(predictor: Predictor, path: Path) -> str:
    """Writes a program for `jax.export`; see `formats/stablehlo.py` and `export_to_torchvision`."""
    _check_suffix(path, ".stablehlo")
    data = stablehlo.build(_tape(predictor), predictor.tensors(), channels=predictor.channels)
    write_whole(path, lambda part: part.write_bytes(data))
    return f"{path}: for {', '.join(stablehlo.PLATFORMS)}, {len(data) / 1e6:.1f} MB"


def export_to_pytorch(predictor: Predictor, folder: Path) -> str:
    """Writes a folder for plain PyTorch; see `formats/fcn_torch.py` and `export_to_torchvision`."""
    graph = folder / "graph.json"
    if folder.exists() and any(folder.iterdir()) and not graph.exists():
        raise UserError(f"{folder} exists and is no export to PyTorch: give another --output")
    tape = dataclasses.asdict(_tape(predictor)) | {"class_names": predictor.label_maps}
    tensors = predictor.tensors()
    module = Path(formats.__file__).with_name("fcn_torch.py").read_text(encoding="utf-8")
    weights = folder / model_file.FILE
    write_whole(weights, lambda part: save_file(tensors, part, metadata={"format": "pt"}))
    write_text(folder / "fcn_torch.py", module)
    write_text(graph, json.dumps(tape))
    return f"{folder}: from fcn_torch import load; network = load(FOLDER)"


_EXPORTERS: dict[str, Callable[[Predictor, Path], str]] = {
    "onnx": export_to_onnx,
    "stablehlo": export_to_stablehlo,
    "pytorch": export_to_pytorch,
    "torchvision": export_to_torchvision,
    "torchfcn": export_to_torchfcn,
}


def _tape(predictor: Predictor) -> Tape:
    model = dataclasses.replace(predictor.config.model, remat=False, compute_dtype="float32")
    num_classes = {name: len(names) for name, names in predictor.label_maps.items()}
    network = PureModel(abstract_model(model, num_classes, channels=predictor.channels))
    try:
        return record(network)
    except UnknownLayerError as error:
        raise UserError(f"this network has no counterpart in other formats: {error}") from error


def _check_suffix(path: Path, suffix: str) -> None:
    if path.suffix != suffix:
        raise UserError(f"--output={path} must end in {suffix}")


def _format(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(_format, value)) if isinstance(value, list | tuple) else str(value)


if __name__ == "__main__":
    cli.run(main)
