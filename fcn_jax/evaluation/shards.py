"""A split scored in shards: DIR/evaluation/shards/SPLIT_shard_2_of_8.npz, and their sum.

Each shard is scored by a job of its own, on any machine. All scores are functions of counts, so the
sum over the shards gives the scores, intervals and pictures of the whole split, to the last digit.
"""

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from fcn_jax.data.shard import Shard
from fcn_jax.errors import UserError, listed
from fcn_jax.evaluation import conventions, count_files
from fcn_jax.evaluation.calibration import Calibration
from fcn_jax.evaluation.evaluator import WORST_SHOWN, Evaluation, MapEvaluation, sheet_images
from fcn_jax.evaluation.image_counts import ImageCounts
from fcn_jax.inference.options import Inference
from fcn_jax.pictures.sheets import SheetRow

FOLDER = "shards"
"""The folder of the files of shards, in the folder that `evaluate` writes to."""

MAX_LISTED = 8


@dataclasses.dataclass(frozen=True)
class EvaluatedShard:
    """The scores of one shard of a split.

    Attributes:
        shard: which of how many.
        inputs: JSON values that must be equal in all shards: `weights` (a digest), `step`, and what
            identifies the images.
        evaluation: the scores of the shard's images.
    """

    shard: Shard
    inputs: Mapping[str, Any]
    evaluation: Evaluation

    def save(self, path: Path) -> None:
        """Writes an .npz file atomically.

        Raises:
            UserError: it cannot be written.
        """
        arrays: dict[str, np.ndarray] = {}
        for number, scored in enumerate(self.evaluation.by_map.values()):
            arrays |= {f"{number}/{name}": x for name, x in _arrays(scored).items()}
        arrays["about"] = np.array(json.dumps(self._about))
        arrays["names"] = np.array(self.evaluation.names, dtype=np.str_)
        count_files.save(path, arrays)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads a file that `save` wrote.

        Raises:
            UserError: the file cannot be read, is damaged, or holds something else.
        """
        with count_files.opened(path, "evaluate this shard again") as stored:
            return cls._of(json.loads(str(stored["about"])), stored)

    @property
    def _about(self) -> dict[str, Any]:
        evaluation = self.evaluation
        return {
            "shard": str(self.shard),
            "image_count": evaluation.image_count,
            "inputs": dict(self.inputs),
            "classes": {name: list(m.class_names) for name, m in evaluation.by_map.items()},
            "canvases": evaluation.canvases,
            "empty_share": evaluation.empty_share,
            "convention": evaluation.convention.name,
            "inference": dataclasses.asdict(evaluation.inference),
        }

    @classmethod
    def _of(cls, about: dict[str, Any], stored: Mapping[str, np.ndarray]) -> Self:
        shard, count = Shard.parse(about["shard"]), int(about["image_count"])
        names = tuple(stored["names"].tolist())
        if len(names) != len(shard.of(range(count))):
            raise ValueError(f"{len(names)} images in shard {shard} of {count}")
        inference: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in about["inference"].items()
        }
        convention = conventions.CONVENTIONS[about["convention"]]
        by_map = {
            name: _map_evaluation(f"{number}/", tuple(classes), names, convention, stored)
            for number, (name, classes) in enumerate(about["classes"].items())
        }
        evaluation = Evaluation(
            by_map,
            names,
            count,
            tuple((int(height), int(width)) for height, width in about["canvases"]),
            float(about["empty_share"]),
            convention,
            Inference(**inference),
        )
        return cls(shard, about["inputs"], evaluation)

    def differences(self, other: "EvaluatedShard") -> list[str]:
        """Names what of the settings of two shards differs, with the values of both."""
        ours, theirs = self._about, other._about
        pairs = {name: (ours["inputs"].get(name), x) for name, x in other.inputs.items()}
        names = ("image_count", "classes", "convention", "inference")
        pairs |= {name: (ours[name], theirs[name]) for name in names}
        with_boundary = [
            any(scored.boundary is not None for scored in one.evaluation.by_map.values())
            for one in (self, other)
        ]
        pairs["boundary"] = with_boundary[0], with_boundary[1]
        pairs["temperature"] = _temperatures(self), _temperatures(other)
        return [
            f"{name.replace('_', ' ')} {_short(a)} and {_short(b)}"
            for name, (a, b) in pairs.items()
            if a != b
        ]


def merge(shards: Mapping[Path, EvaluatedShard]) -> Evaluation:
    """Adds up the shards of a split.

    Args:
        shards: all shards of a split, by their files.

    Returns:
        The evaluation of the split: the same as without shards.

    Raises:
        UserError: a shard is missing or there twice, or two were scored with different settings,
            weights or images.
    """
    (first_path, first), *others = shards.items()
    paths: dict[int, Path] = {}
    for path, one in shards.items():
        if one.shard.count != first.shard.count:
            raise UserError(
                f"{first_path} is one of {first.shard.count} shards, {path} one of "
                f"{one.shard.count}: remove the files of those that are not to be merged"
            )
        if one.shard.index in paths:
            raise UserError(
                f"{paths[one.shard.index]} and {path} are the same shard: give one of them"
            )
        paths[one.shard.index] = path
    for path, one in others:
        if differences := first.differences(one):
            raise UserError(
                f"{first_path} and {path} were scored differently ({'; '.join(differences)}): "
                "evaluate their shards again"
            )
    missing = [str(Shard(i, first.shard.count)) for i in range(first.shard.count) if i not in paths]
    if missing:
        raise UserError(
            f"{first_path} is one of {first.shard.count} shards; missing: "
            f"{listed(missing, MAX_LISTED)} (evaluate them, or give the folders that hold them)"
        )
    ordered = [shards[path] for _, path in sorted(paths.items())]
    names = _interleaved([np.array(one.evaluation.names, object) for one in ordered], first)
    return dataclasses.replace(
        first.evaluation,
        by_map={name: _merged(name, ordered) for name in first.evaluation.by_map},
        names=tuple(names.tolist()),
    )


def find_shards(folders: Iterable[Path]) -> dict[str, list[Path]]:
    """Finds the files of shards in folders that `evaluate` wrote to, by the name of the split.

    Raises:
        UserError: a folder has none.
    """
    found: dict[str, list[Path]] = {}
    for folder in folders:
        names = {path: re.match(r"(.+)_shard_\d+_of_\d+\.npz$", path.name) for path in _in(folder)}
        if not any(names.values()):
            raise UserError(
                f"{folder} holds no evaluated shards (evaluate --shard=i/n writes them)"
            )
        for path, name in names.items():
            if name is not None:
                found.setdefault(name[1], []).append(path)
    return found


def _in(folder: Path) -> Sequence[Path]:
    return sorted((folder / FOLDER).glob("*.npz"))


def _arrays(scored: MapEvaluation) -> dict[str, np.ndarray]:
    arrays = {
        "confusion": scored.confusion,
        "hits": scored.counts.hits,
        "truth": scored.counts.truth,
        "predicted": scored.counts.predicted,
    }
    if scored.boundary is not None:
        arrays["boundary"] = scored.boundary
    if scored.calibration is not None:
        arrays["calibration"] = scored.calibration.counts
        arrays["temperature"] = np.array(scored.calibration.temperature)
    if scored.colours:
        arrays["colours"] = np.array(scored.colours, np.uint8)
    for kind, rows in (("row", scored.sheet_rows), ("worst", scored.worst)):
        for number, (image, truth, predicted, name) in enumerate(rows):
            row = f"{kind}{number}"
            arrays |= {f"{row}/image": image, f"{row}/truth": truth, f"{row}/predicted": predicted}
            arrays[f"{row}/name"] = np.array(name)
    return arrays


def _rows(prefix: str, stored: Mapping[str, np.ndarray]) -> list[SheetRow]:
    """Reads the rows PREFIX0, PREFIX1, …"""
    rows: list[SheetRow] = []
    while f"{prefix}{len(rows)}/name" in stored:
        image, truth, predicted, name = (
            stored[f"{prefix}{len(rows)}/{x}"] for x in ("image", "truth", "predicted", "name")
        )
        rows.append((image, truth, predicted, str(name)))
    return rows


def _map_evaluation(
    prefix: str,
    class_names: tuple[str, ...],
    names: tuple[str, ...],
    convention: conventions.Convention,
    stored: Mapping[str, np.ndarray],
) -> MapEvaluation:
    counts = (stored[f"{prefix}{name}"] for name in ("hits", "truth", "predicted"))
    boundary, calibration = f"{prefix}boundary", None
    if f"{prefix}calibration" in stored:
        temperature = float(stored[f"{prefix}temperature"])
        calibration = Calibration(stored[f"{prefix}calibration"], temperature)
    colours = stored.get(f"{prefix}colours", np.zeros((0, 3), np.uint8))
    return MapEvaluation(
        class_names=class_names,
        confusion=stored[f"{prefix}confusion"],
        counts=ImageCounts(names, *counts),
        sheet_rows=_rows(f"{prefix}row", stored),
        worst=_rows(f"{prefix}worst", stored),
        mean_over=convention.mean_over,
        boundary=stored.get(boundary),
        calibration=calibration,
        colours=tuple((red, green, blue) for red, green, blue in colours.tolist()),
    )


def _temperatures(one: EvaluatedShard) -> list[float | None]:
    """Returns the temperature of each label map; None of pixels not counted by confidence."""
    calibrations = [scored.calibration for scored in one.evaluation.by_map.values()]
    return [None if one is None else one.temperature for one in calibrations]


def _merged(label_map: str, ordered: Sequence[EvaluatedShard]) -> MapEvaluation:
    """Adds up one label map of all shards, which are in order."""
    maps = [one.evaluation.by_map[label_map] for one in ordered]
    first = ordered[0]
    names = _interleaved([np.array(one.evaluation.names, object) for one in ordered], first)
    arrays = [
        _interleaved([getattr(scored.counts, name) for scored in maps], first)
        for name in ("hits", "truth", "predicted")
    ]
    counts = ImageCounts(tuple(names.tolist()), *arrays)
    order = {
        name: (own, place)
        for place, (name, own) in enumerate(
            zip(counts.names, counts.mean_iou_by_image, strict=True)
        )
    }
    worst = sorted((row for scored in maps for row in scored.worst), key=lambda row: order[row[3]])
    rows = [iter(scored.sheet_rows) for scored in maps]
    shown = sheet_images(first.evaluation.image_count)
    calibrations = [scored.calibration for scored in maps if scored.calibration is not None]
    boundaries = [scored.boundary for scored in maps if scored.boundary is not None]
    return dataclasses.replace(
        maps[0],
        confusion=np.sum([scored.confusion for scored in maps], axis=0),
        counts=counts,
        sheet_rows=[next(rows[index % len(maps)]) for index in shown],
        worst=worst[:WORST_SHOWN],
        boundary=np.sum(boundaries, axis=0) if boundaries else None,
        calibration=sum(calibrations[1:], calibrations[0]) if calibrations else None,
    )


def _interleaved(parts: Sequence[np.ndarray], first: EvaluatedShard) -> np.ndarray:
    """Puts the rows of each shard, in the shards' order, where they are in the split."""
    whole = np.zeros((first.evaluation.image_count, *parts[0].shape[1:]), parts[0].dtype)
    for index, rows in enumerate(parts):
        whole[index :: len(parts)] = rows
    return whole


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
