import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcn_jax.errors import UserError
from fcn_jax.evaluation.comparison import (
    Comparison,
    ImageChange,
    compare,
    comparison_to_json,
    largest_changes,
    read_evaluation,
    verdict,
)
from fcn_jax.evaluation.image_counts import ImageCounts
from fcn_jax.evaluation.metrics import scores, to_json
from tests.in_process import run_command

CLASSES = ("sky", "road", "boat")


def write_scored(
    workdir: Path,
    confusions: np.ndarray,
    *,
    names: list[str] | None = None,
    classes: tuple[str, ...] = CLASSES,
    stem: str = "val",
    boundary: np.ndarray | None = None,
) -> Path:
    """Writes the files of evaluate that a comparison reads."""
    names = names or [f"image {i}" for i in range(len(confusions))]
    folder = workdir / "evaluation"
    ImageCounts.of(names, confusions).save(folder / f"{stem}_images.npz")
    result = scores(confusions.sum(axis=0), boundary=boundary)
    numbers = {**to_json(result, classes, len(names)), "step": 12}
    (folder / f"{stem}.json").write_text(json.dumps(numbers))
    return workdir


def confusions_of(share_right: float, images: int = 40, seed: int = 0) -> np.ndarray:
    """About this share of sky and road is correct, the rest predicted as the other. No boats."""
    random = np.random.default_rng(seed)
    truth = random.integers(200, 1000, (images, 2))  # the same for every share
    hits = np.rint(truth * random.normal(share_right, 0.05, (images, 2)).clip(0, 1)).astype(int)
    confusions = np.zeros((images, 3, 3), int)
    confusions[:, [0, 1], [0, 1]] = hits
    confusions[:, [0, 1], [1, 0]] = truth - hits
    return confusions


def compared(a: Path, b: Path, stem: str = "val") -> Comparison:
    return compare(read_evaluation(a, stem), read_evaluation(b, stem))


def test_a_clear_difference_is_called_one(tmp_path):
    a = write_scored(tmp_path / "a", confusions_of(0.6))
    b = write_scored(tmp_path / "b", confusions_of(0.7))
    comparison = compared(a, b)
    found = comparison.b.scores.mean_iou - comparison.a.scores.mean_iou
    low, high = comparison.intervals_of_difference.mean_iou
    assert 0 < low < found < high
    assert verdict(comparison) == (
        f"B's mIoU is {100 * found:.1f} points above A's; the 95 % interval of the difference, "
        f"+{100 * low:.1f} to +{100 * high:.1f}, does not contain 0: the choice of the 40 images "
        "does not explain it. The interval does not include the variation over training seeds."
    )
    assert "points below A's" in verdict(compared(b, a))
    # The intervals of the runs do not overlap.
    interval_a, interval_b = comparison.intervals_a.mean_iou, comparison.intervals_b.mean_iou
    assert interval_a.low < interval_a.high < interval_b.low < interval_b.high


def test_a_difference_that_other_images_may_reverse_is_called_one(tmp_path):
    one, other = confusions_of(0.6), confusions_of(0.6)
    other[0], other[1] = confusions_of(0.3)[0], confusions_of(1)[1]
    comparison = compared(write_scored(tmp_path / "a", one), write_scored(tmp_path / "b", other))
    low, high = comparison.intervals_of_difference.mean_iou
    assert low < 0 < high
    assert "contains 0: the choice of the 40 images may explain it." in verdict(comparison)


def test_equal_runs_and_runs_of_one_or_no_valid_image(tmp_path):
    a = write_scored(tmp_path / "a", confusions_of(0.6))
    assert verdict(compared(a, a)) == (
        "A and B have the same mIoU in every resample of the images."
    )
    a = write_scored(tmp_path / "a1", confusions_of(0.6)[:1])
    b = write_scored(tmp_path / "b1", confusions_of(0.8)[:1])
    assert verdict(compared(a, b)).endswith("on a single image: there is no interval.")
    a = write_scored(tmp_path / "void", np.zeros((2, 3, 3), int))
    assert verdict(compared(a, a)) == "No pixel is valid: there is nothing to compare."


def test_images_are_ranked_by_the_change_of_their_own_mean_iou(tmp_path):
    # Images of a single class, whose mIoU is the share of correct pixels; the last is void.
    def images(*hits: int) -> np.ndarray:
        confusions = np.zeros((5, 3, 3), int)
        confusions[:4, 1, 1] = hits
        confusions[:4, 1, 0] = 100 - np.array(hits)
        return confusions

    names = ["w", "x", "y", "z", "void"]
    a = write_scored(tmp_path / "a", images(50, 50, 50, 50), names=names)
    b = write_scored(tmp_path / "b", images(60, 20, 90, 50), names=names)
    comparison = compared(a, b)
    gained, lost = largest_changes(comparison, 5)
    assert gained == [ImageChange("y", 0.5, 0.9), ImageChange("w", 0.5, 0.6)]
    assert lost == [ImageChange("x", 0.5, 0.2)]
    assert largest_changes(comparison, 1)[0] == [ImageChange("y", 0.5, 0.9)]
    listed = comparison_to_json(comparison)["mean_iou_by_image"]
    assert [entry["image"] for entry in listed] == ["x", "z", "w", "y", "void"]
    assert listed[-1] == {"image": "void", "a": None, "b": None}


def test_what_the_command_prints_and_writes(tmp_path):
    boundary = np.array([[1, 2, 0], [4, 4, 0]])
    names = [f"[{i}]" for i in range(40)]
    a = write_scored(tmp_path / "a", confusions_of(0.6), names=names, boundary=boundary)
    b = write_scored(tmp_path / "b $1$", confusions_of(0.7), names=names, boundary=2 * boundary)
    result = run_command("compare", a, f"{b}/")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == f"A: {a}, step 12"
    assert lines[1] == f"B: {b}, step 12"
    rows = [line.split() for line in lines]
    comparison = compared(a, b)
    iou_a, iou_b = comparison.a.scores.per_class_iou, comparison.b.scores.per_class_iou
    low, high = comparison.intervals_of_difference.per_class_iou[0]
    assert [
        "sky",
        f"{100 * iou_a[0]:.1f}",
        f"{100 * iou_b[0]:.1f}",
        f"+{100 * (iou_b[0] - iou_a[0]):.1f}",
        f"+{100 * low:.1f}",
        "to",
        f"+{100 * high:.1f}",
    ] in rows
    assert ["boat", "–", "–"] in rows
    assert ["mean", "boundary", "IoU", "37.5", "37.5", "+0.0"] in rows
    assert verdict(comparison) in lines
    gained, _ = largest_changes(comparison, 5)
    assert {row[0] for row in rows if row} >= {moved.image for moved in gained}
    folder = a / "evaluation" / "against_b $1$"
    assert lines[-3] == f"numbers and picture: {folder}/val.json, .png"
    assert lines[-2].startswith(f"note: the page is without images: {a} is not the folder of a run")
    assert lines[-1] == f"page: {folder}/val.html"
    assert sorted(path.name for path in folder.iterdir()) == ["val.html", "val.json", "val.png"]
    written = json.loads((folder / "val.json").read_text())
    assert written["split"] == "val"
    assert written["images_by_class"] == {"sky": 40, "road": 40, "boat": 0}
    assert written["a"]["per_class_iou"]["boat"] is None
    assert written["a"]["intervals"]["mean_iou"] == list(comparison.intervals_a.mean_iou)
    difference = written["b_minus_a"]
    assert difference["per_class_iou"]["sky"] == pytest.approx(iou_b[0] - iou_a[0])
    assert difference["intervals"]["per_class_iou"] == {
        "sky": [low, high],
        "road": list(comparison.intervals_of_difference.per_class_iou[1]),
        "boat": None,
    }
    with Image.open(folder / "val.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(2**24)}
    assert {(0x44, 0x77, 0xAA), (0xCC, 0x66, 0x33)} <= colours  # both runs are drawn


def test_the_command_reads_label_maps_and_files_and_writes_to_a_given_folder(tmp_path):
    # For a model file, evaluate writes to the folder of the same name.
    (tmp_path / "net.v2.safetensors").touch()
    write_scored(tmp_path / "net.v2", confusions_of(0.5), stem="val_geometry")
    b = write_scored(tmp_path / "b", confusions_of(0.6), stem="val_geometry")
    output = tmp_path / "new" / "folder"
    arguments = ("--split=val_geometry", f"--output={output}")
    result = run_command("compare", tmp_path / "net.v2.safetensors", b, *arguments)
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in output.iterdir()) == [
        "val_geometry.html",
        "val_geometry.json",
        "val_geometry.png",
    ]


def test_the_command_reports_mistakes_in_one_line(tmp_path):
    a = write_scored(tmp_path / "a", confusions_of(0.5))
    result = run_command("compare", a)
    assert result.returncode == 1
    assert result.stderr == "compare: two runs are needed: A and B (see --help)\n"
    result = run_command("compare", a, f"{a}/")
    assert result.stderr == f"compare: A and B are the same run, {a}: give two\n"
    b = write_scored(tmp_path / "b", confusions_of(0.6))
    (tmp_path / "file").touch()
    result = run_command("compare", a, b, f"--output={tmp_path / 'file' / 'x'}")
    assert result.returncode == 1
    assert result.stderr.startswith(f"compare: cannot write {tmp_path}/file/x/val.json")
    assert len(result.stderr.splitlines()) == 1


def test_runs_not_evaluated_are_refused_with_the_command_that_does(tmp_path):
    with pytest.raises(UserError, match=r"^/.*/none does not exist$"):
        read_evaluation(tmp_path / "none", "val")
    (tmp_path / "new").mkdir()
    with pytest.raises(UserError) as error:
        read_evaluation(tmp_path / "new", "val")
    evaluate = f"python -m fcn_jax.evaluate --workdir={tmp_path}"
    assert str(error.value) == f"{tmp_path}/new has no scores of val: {evaluate}/new --split=val"
    with pytest.raises(UserError, match="is of the convention mmseg, whose means are over other"):
        read_evaluation(tmp_path / "new", "val_mmseg")
    (tmp_path / "new" / "val.json").touch()
    with pytest.raises(UserError, match=r"val\.json is a file: give the folder of a run"):
        read_evaluation(tmp_path / "new" / "val.json", "val")
    a = write_scored(tmp_path / "a", confusions_of(0.5))
    write_scored(a, confusions_of(0.5), stem="train")
    with pytest.raises(UserError, match=r"--split=test; there are scores of: train, val$"):
        read_evaluation(a, "test")
    (a / "evaluation" / "val_images.npz").unlink()
    with pytest.raises(UserError, match=r"val.json but not val_images.npz, .* --workdir=\S*/a "):
        read_evaluation(a, "val")


def test_files_of_different_evaluations_are_refused(tmp_path):
    a = write_scored(tmp_path / "a", confusions_of(0.5))
    other = ImageCounts.of([f"{i}" for i in range(40)], confusions_of(0.6))
    other.save(a / "evaluation" / "val_images.npz")
    with pytest.raises(
        UserError, match=r"val.json and val_images.npz are of different evaluations"
    ):
        read_evaluation(a, "val")
    for text in ("", "[]", "{}", '{"per_class_iou": {"sky": "x"}, "images": 1, "step": 1}'):
        (a / "evaluation" / "val.json").write_text(text)
        with pytest.raises(UserError, match=r"val.json cannot be read .*fcn_jax.evaluate"):
            read_evaluation(a, "val")


def test_runs_of_different_images_classes_or_masks_are_refused(tmp_path):
    confusions = confusions_of(0.5, images=3)
    a = write_scored(tmp_path / "a", confusions, names=["x", "y", "z"])
    fewer = write_scored(tmp_path / "fewer", confusions[:2], names=["x", "y"])
    with pytest.raises(UserError, match=r"different images: 3 and 2, only z in .*/a$"):
        compared(a, fewer)
    turned = write_scored(tmp_path / "turned", confusions, names=["y", "x", "z"])
    with pytest.raises(UserError, match="3 and 3, in another order"):
        compared(a, turned)
    renamed = write_scored(
        tmp_path / "renamed", confusions, names=["x", "y", "z"], classes=("sky", "road", "ship")
    )
    with pytest.raises(UserError, match="different classes: sky, road, boat; sky, road, ship"):
        compared(a, renamed)
    masks = confusions.copy()
    masks[1, 0, 0] += 1
    drawn_again = write_scored(tmp_path / "masks", masks, names=["x", "y", "z"])
    with pytest.raises(UserError, match="different masks: 1 of 3 differ, such as y;"):
        compared(a, drawn_again)
    nothing = write_scored(tmp_path / "none", np.zeros((0, 3, 3), int))
    with pytest.raises(UserError, match="scored on no images"):
        compared(nothing, nothing)


def test_a_label_map_may_have_the_name_of_a_convention(tmp_path):
    a = write_scored(tmp_path / "a", confusions_of(0.5), stem="val_paper")
    assert read_evaluation(a, "val_paper").numbers["images"] == 40


def test_scores_of_earlier_versions_are_read(tmp_path):
    """They were written as "mean_iu"."""
    a = write_scored(tmp_path / "a", confusions_of(0.5), boundary=np.array([[1, 2, 0], [4, 4, 0]]))
    b = write_scored(tmp_path / "b", confusions_of(0.6), boundary=np.array([[1, 2, 0], [4, 4, 0]]))
    path = a / "evaluation" / "val.json"
    path.write_text(path.read_text().replace("iou", "iu"))
    assert '"per_class_iu"' in path.read_text()
    old = read_evaluation(a, "val")
    assert old.class_names == CLASSES
    assert (
        old.numbers["mean_boundary_iou"] == read_evaluation(b, "val").numbers["mean_boundary_iou"]
    )
    assert compare(old, read_evaluation(b, "val")).a.scores.mean_iou == old.numbers["mean_iou"]
    path.write_text('{"per_class_jaccard": {}, "images": 40, "step": 12}')
    with pytest.raises(UserError, match=r"val.json cannot be read .*; evaluate again: python -m"):
        read_evaluation(a, "val")
