"""Reads a file of weights, or another run's folder, into the parameters of a network."""

import zipfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from fcn_jax.errors import UserError
from fcn_jax.pretrained.tables import SOURCES, Source


def initialize(variables: tuple[Any, Any], init: str) -> tuple[tuple[Any, Any], str]:
    """Replaces what `init` has weights for.

    Args:
        variables: (params, batch_stats), nested dicts of float32 arrays.
        init: a file of weights of a known source (.npz, or .pth where PyTorch is installed), or the
            folder of another run of fcn_jax, whose newest checkpoint is taken; score and upsampling
            layers that it lacks, or has for another number of classes, keep their initial values.

    Returns:
        The variables, and a line that says what was taken and what keeps its initial value.

    Raises:
        UserError: no such file, a file of another network, or tensors missing, unexpected or of
            another shape: all of them in one message.
    """
    path = Path(init)
    ours = {name: np.asarray(value) for name, value in _flat(variables).items()}
    taken, title = _from_run(path, ours) if path.is_dir() else _from_file(path, ours)
    kept = sorted({name.rpartition("/")[0] for name in ours if name not in taken})
    report = f"initialized from {path}: {title}"
    if kept:
        report += f"; not in it, so left as they were: {', '.join(kept)}"
    return _unflat(variables, taken), report


def _from_file(path: Path, ours: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], str]:
    theirs = _read(path)
    source = _recognize(path, theirs)
    expected = {name: entry for name, entry in source.table.items() if name in ours}
    if not expected or len(expected) < len(source.table):
        raise UserError(
            f"{path} holds {source.title}, which fits config.model.backbone={source.backbone}, not "
            "the backbone of this run"
        )
    taken, problems = {}, []
    for name, (key, layout) in expected.items():
        if key not in theirs:
            problems.append(f"missing {key}")
            continue
        try:
            tensor = layout(theirs[key]).astype(np.float32)
        except ValueError:
            tensor = theirs[key]
        if tensor.shape != ours[name].shape:
            problems.append(
                f"{key} has shape {theirs[key].shape}, which does not make {name} "
                f"{ours[name].shape}"
            )
        elif not np.isfinite(tensor).all():
            problems.append(f"{key} is not finite")
        taken[name] = tensor
    wanted = {key for key, _ in expected.values()}
    problems += [
        f"unexpected {key}"
        for key in sorted(theirs)
        if key not in wanted
        and not any(key.startswith(part) or key.endswith(part) for part in source.left_out)
    ]
    problems += [
        f"nothing for {name}"
        for name in ours
        if name.startswith("backbone/")
        and name not in expected
        and name.split("/")[1] not in source.absent
    ]
    if problems:
        raise UserError(f"{path} does not fit {source.title}: {'; '.join(problems)}")
    return taken, source.title


def _from_run(path: Path, ours: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], str]:
    from fcn_jax.runs import load_run

    run = load_run(path)
    theirs = {name: np.asarray(value) for name, value in _flat(run.variables).items()}
    taken = {
        name: value
        for name, value in theirs.items()
        if name in ours and value.shape == ours[name].shape
    }
    missing = [n for n in ours if n.startswith("backbone/") and n not in taken]
    if missing:
        raise UserError(
            f"{path} holds a run of another backbone ({run.config.model.backbone}): it has no "
            f"{', '.join(missing[:5])}{' …' if len(missing) > 5 else ''} of this shape"
        )
    return taken, f"run at step {run.step}"


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        raise UserError(f"config.init: there is no file {path}")
    try:
        if path.suffix == ".npz":
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                return {key: file[key] for key in file.files}
        if path.suffix in (".pth", ".pt"):
            return _read_torch(path)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, RuntimeError) as error:
        raise UserError(
            f"config.init: {path} cannot be read ({str(error).splitlines()[0]}): it may be "
            "truncated; fetch it again"
        ) from error
    raise UserError(
        f"config.init: {path} must be a .npz or .pth file of weights, or the folder of a run"
    )


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise UserError(
            f"config.init: reading {path} needs PyTorch (`pip install torch`), or convert it once "
            "where PyTorch is: numpy.savez(FILE, **{k: v.numpy() for k, v in state_dict.items()})"
        ) from None
    # weights_only: tensors alone are unpickled, never code.
    state = torch.load(path, map_location="cpu", weights_only=True)
    return {key: value.float().numpy() for key, value in state.items()}


def _recognize(path: Path, theirs: dict[str, np.ndarray]) -> Source:
    for make in SOURCES:
        source = make()
        if source.signature in theirs:
            return source
    titles = "; ".join(make().title for make in SOURCES)
    first = ", ".join(list(theirs)[:3])
    raise UserError(
        f"config.init: {path} is of no known source (it begins with {first}); known are: {titles}"
    )


def _flat(variables: tuple[Any, Any]) -> dict[str, Any]:
    params, batch_stats = variables
    return {
        **traverse_util.flatten_dict(params, sep="/"),
        **traverse_util.flatten_dict(batch_stats, sep="/"),
    }


def _unflat(variables: tuple[Any, Any], taken: dict[str, np.ndarray]) -> tuple[Any, Any]:
    def replaced(tree):
        flat = traverse_util.flatten_dict(tree, sep="/")
        new = {name: jnp.asarray(taken.get(name, value)) for name, value in flat.items()}
        return traverse_util.unflatten_dict(new, sep="/")

    params, batch_stats = variables
    return replaced(params), replaced(batch_stats)
