"""Scores under the conventions of other projects, beside those projects' own code.

nnU-Net and Ultralytics ask for packages that nothing here needs: of their files, only the functions
and classes that score are run.
"""

import importlib
import importlib.util
import itertools
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fcn_jax.evaluation import metrics
from fcn_jax.evaluation.confusion import count_confusion
from fcn_jax.evaluation.conventions import CITYSCAPES, NNUNET, ULTRALYTICS
from fcn_jax.evaluation.image_counts import ImageCounts
from tests.peer_code import definitions


def label_maps(num_classes: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Truth and prediction of four images.

    The last class but one is only predicted, the last is in neither, and class 2 is not in the
    first image.
    """
    random = np.random.default_rng(0)
    pairs = []
    for index in range(4):
        truth = random.integers(0, num_classes - 2, (20, 30 + index)).astype(np.uint8)
        other = random.integers(0, num_classes - 1, truth.shape)
        guess = np.where(random.random(truth.shape) < 0.7, truth, other).astype(np.uint8)
        if index == 0:
            truth[truth == 2], guess[guess == 2] = 1, 0
        truth[:3] = 255
        pairs.append((truth, guess))
    return pairs


def matrices(pairs: Sequence[tuple[np.ndarray, np.ndarray]], num_classes: int) -> np.ndarray:
    return np.stack([count_confusion(truth, guess, num_classes) for truth, guess in pairs])


def test_cityscapes_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its files of label ids, whose trainIds are our classes."""
    if importlib.util.find_spec("cityscapesscripts") is None:
        pytest.skip("cityscapesScripts is not installed")
    boxes = ModuleType("annotation")  # three-dimensional boxes, which need another package
    vars(boxes)["Annotation"] = None
    monkeypatch.setitem(sys.modules, "cityscapesscripts.helpers.annotation", boxes)
    script: Any = importlib.import_module(
        "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling"
    )
    pairs = label_maps(19)
    ids = np.zeros(256, np.uint8)  # 255 becomes "unlabeled", which is not evaluated
    for label in script.labels:
        if not label.ignoreInEval:
            ids[label.trainId] = label.id
    files: list[list[str]] = [[], []]
    for index, pair in enumerate(pairs):
        for kind, labels in enumerate(pair):
            files[kind].append(str(tmp_path / f"{index}_{kind}.png"))
            Image.fromarray(ids[labels]).save(files[kind][-1])
    settings = script.args
    settings.evalInstLevelScore, settings.JSONOutput, settings.quiet = False, False, True
    truth, guess = files
    expected = script.evaluateImgLists(guess, truth, settings)

    ours = metrics.scores(matrices(pairs, 19).sum(0), CITYSCAPES.mean_over)
    of_class = [expected["classScores"][script.trainId2label[index].name] for index in range(19)]
    np.testing.assert_allclose(ours.per_class_iou, of_class, rtol=1e-12)
    assert math.isnan(of_class[18])
    assert ours.mean_iou == pytest.approx(expected["averageScoreClasses"], rel=1e-12)


def test_ultralytics(torch: ModuleType) -> None:
    """Releases from 8.4.100 on take the mean over the classes in the truth."""
    needed = {
        "np": np,
        "torch": torch,
        "Path": Path,
        "SimpleClass": type("SimpleClass", (), {}),
        "DataExportMixin": type("DataExportMixin", (), {}),
        "plt_settings": lambda: lambda function: function,
    }
    peer = definitions("ultralytics", "utils/metrics.py", {"SemanticMetrics"}, needed)
    pairs = label_maps(5)
    theirs = peer.SemanticMetrics(dict(enumerate("abcde")))
    for truth, guess in pairs:
        theirs.update_stats(*(torch.tensor(x[None].astype(np.int64)) for x in (guess, truth)))
    theirs.process()

    matrix = matrices(pairs, 5).sum(0)
    ours = metrics.scores(matrix, ULTRALYTICS.mean_over)
    np.testing.assert_allclose(ours.per_class_iou, theirs.per_class_iou, rtol=1e-6)
    assert ours.per_class_iou[4] == 0
    assert ours.pixel_accuracy == pytest.approx(theirs.pixel_accuracy, rel=1e-6)
    in_truth = matrix.sum(1) > 0
    of_newer = ours.per_class_iou[in_truth].mean()
    assert ours.mean_iou != pytest.approx(of_newer, rel=1e-2)
    expected = of_newer if theirs.miou > ours.mean_iou + 1e-3 else ours.mean_iou
    assert theirs.miou == pytest.approx(expected, rel=1e-6)


def test_nnunet() -> None:
    class Reader:
        """Gives arrays where the name of a file is asked for."""

        def read_seg(self, name: str) -> tuple[np.ndarray, dict[str, Any]]:
            kind, index = name.split("/")
            return pairs[int(index)][("truth", "guess").index(kind)][None], {}

    class Pool:
        starmap = staticmethod(lambda function, given: list(itertools.starmap(function, given)))
        __init__ = __exit__ = lambda self, *_: None
        __enter__ = lambda self: self  # noqa: E731

    pairs = label_maps(5)
    needed = {
        "np": np,
        "default_num_processes": 1,
        "multiprocessing": SimpleNamespace(get_context=lambda _: SimpleNamespace(Pool=Pool)),
        "subfiles": lambda *_, **__: ["0", "1", "2", "3"],
        "join": lambda *parts: "/".join(parts),
        "recursive_fix_for_json_export": lambda _: None,
    }
    names = {
        "compute_metrics_on_folder",
        "compute_metrics",
        "compute_tp_fp_fn_tn",
        "region_or_label_to_mask",
    }
    path = "evaluation/evaluate_predictions.py"
    peer = definitions("nnunetv2", path, names, needed)
    vars(peer)["compute_metrics_on_folder"].__globals__.update(vars(peer))
    labels = [1, 2, 3]
    theirs = peer.compute_metrics_on_folder("truth", "guess", None, Reader(), "", labels, 255)
    assert math.isnan(theirs["metric_per_case"][0]["metrics"][2]["Dice"])

    counts = ImageCounts.of(tuple("abcd"), matrices(pairs, 5)[:, :4, :4])
    ours = metrics.case_scores(counts.hits, counts.truth, counts.predicted)
    assert NNUNET.mean_over == "cases"
    for index in labels:
        expected = theirs["mean"][index]
        assert ours.per_class_dice[index] == pytest.approx(expected["Dice"], rel=1e-12)
        assert ours.per_class_iou[index] == pytest.approx(expected["IoU"], rel=1e-12)
    assert ours.mean_dice == pytest.approx(theirs["foreground_mean"]["Dice"], rel=1e-12)
    assert ours.mean_iou == pytest.approx(theirs["foreground_mean"]["IoU"], rel=1e-12)
