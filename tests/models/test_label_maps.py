"""Several label maps from one trunk, and channels beside RGB: from a folder to labelled images."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from PIL import Image

from fcn_jax.config import Config
from fcn_jax.data.channels import find_channel_files
from fcn_jax.data.datasets import Dataset, open_dataset
from fcn_jax.data.labels import by_map
from fcn_jax.data.masks import read_mask
from fcn_jax.errors import UserError
from fcn_jax.inference import image_files
from fcn_jax.models.backbones.preprocess import TORCHVISION
from fcn_jax.models.backbones.small import SmallNet
from fcn_jax.models.fcn import FCN
from fcn_jax.models.pure_model import PureModel
from fcn_jax.parallel import data_parallel
from fcn_jax.predict import load_run
from fcn_jax.train import train
from fcn_jax.training.train_step import create_train_state, make_train_step
from tests.own_folder import command

MAPS = {"things": 4, "ground": 3}
AUXILIARY_WEIGHT = 0.4
CLASS_WEIGHTS = {
    "things": np.array([0.5, 1, 2, 3], np.float32),
    "ground": np.array([1, 0.25, 4], np.float32),
}


# --- The loss


def canvases() -> dict[str, np.ndarray]:
    """Three canvases; of the second label map but a tenth of the pixels are valid."""
    random = np.random.default_rng(0)
    label = np.stack([random.integers(0, count, (3, 12, 16)) for count in MAPS.values()], axis=-1)
    label[random.random((3, 12, 16)) < 0.3, 0] = 255
    label[random.random((3, 12, 16)) < 0.9, 1] = 255
    return {
        "image": random.integers(0, 256, (3, 12, 16, 4)).astype(np.uint8),
        "label": label.astype(np.uint8),
        "size": np.array([[12, 16]] * 3, np.int32),
    }


def cross_entropy(
    logits: np.ndarray, label: np.ndarray, class_weights: np.ndarray
) -> tuple[float, np.ndarray, float]:
    """The sum over valid pixels, its gradient in the logits, and the sum of weights."""
    valid = label != 255
    weights = np.where(valid, class_weights[np.where(valid, label, 0)], 0)
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    shares = exponentials / exponentials.sum(-1, keepdims=True)
    truth = np.eye(logits.shape[-1])[np.where(valid, label, 0)]
    loss = -(weights * np.log((shares * truth).sum(-1))).sum()
    return loss, weights[..., None] * (shares - truth), weights.sum()


@pytest.mark.parametrize(("normalization", "weighted"), [("mean", True), ("sum", False)])
def test_each_map_counts_by_its_own_pixels(normalization: str, weighted: bool) -> None:
    """One step of rate 1 against NumPy's loss, drawn back through the network."""
    backbone = SmallNet(
        features=(4, 6), preprocessing=TORCHVISION.for_channels(4), rngs=nnx.Rngs(0)
    )
    model = FCN(backbone, MAPS, skips=1, auxiliary=True, rngs=nnx.Rngs(0))
    random = np.random.default_rng(1)
    for head in (model.head_things, model.head_ground):
        for stage in model.stages:
            kernel = getattr(head, f"score{stage}").kernel
            kernel[...] = random.standard_normal(kernel.shape).astype(np.float32)
    network = PureModel(model)
    params, batch_stats = network.variables
    batch = canvases()

    def logits(params):
        values, _ = network((params, batch_stats), batch["image"], train=True, valid=batch["size"])
        return {name: values[f"logits_{name}"] for name in (*MAPS, "auxiliary")}

    values, pull_back = jax.vjp(jax.jit(logits), params)
    labels = {**by_map(batch["label"], tuple(MAPS)), "auxiliary": batch["label"][..., 0]}
    cotangents, mean_loss = {}, 0.0
    for name, value in values.items():
        of_map = "things" if name == "auxiliary" else name
        class_weights = CLASS_WEIGHTS[of_map] if weighted else np.ones(MAPS[of_map])
        loss, gradient, weight = cross_entropy(np.asarray(value), labels[name], class_weights)
        share = AUXILIARY_WEIGHT if name == "auxiliary" else 1.0
        mean_loss += share * loss / weight
        scale = share / weight if normalization == "mean" else share
        cotangents[name] = (scale * gradient).astype(np.float32)
    (expected,) = pull_back(cotangents)

    config = Config()
    config.augment.crop_px, config.augment.scale, config.augment.flip = None, (1.0, 1.0), False
    config.loss.normalization = normalization
    config.model.auxiliary_weight = AUXILIARY_WEIGHT
    optimizer = optax.sgd(1.0)
    weights = jax.tree.map(jnp.asarray, CLASS_WEIGHTS) if weighted else None
    step = data_parallel.parallelize(
        make_train_step(network, optimizer, config, weights), donate_state=False
    )
    state, metrics = step(create_train_state((params, batch_stats), optimizer), batch)
    np.testing.assert_allclose(metrics["loss"], mean_loss, rtol=1e-5)
    leaves, _ = jax.tree_util.tree_flatten_with_path(expected)
    stepped = jax.tree.leaves(jax.tree.map(lambda a, b: a - np.asarray(b), params, state.params))
    largest = max(np.abs(leaf).max() for _, leaf in leaves)
    for (path, leaf), change in zip(leaves, stepped, strict=True):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(change, leaf, atol=1e-5 * largest, rtol=1e-4, err_msg=name)
    things, truth = np.asarray(values["things"]), labels["things"]
    right = (things.argmax(-1) == truth).sum() / (truth != 255).sum()
    np.testing.assert_allclose(metrics["pixel_accuracy"], right, rtol=1e-6)


# --- The folder


def write_set(root: Path, stems: str = "abcdefghijkl", height: int = 48, width: int = 56) -> None:
    """Red discs on noise, and behind the noise a near block that only the depth shows.

    masks: ground, disc. geometry: far, near. Discs and blocks lie anywhere, also over each other.
    """
    for name in ("images", "depth", "masks", "geometry"):
        (root / name).mkdir(parents=True)
    (root / "classes.txt").write_text("ground\ndisc\n")
    (root / "geometry.txt").write_text("far\nnear\n")
    rows, columns = np.mgrid[:height, :width]
    for index, stem in enumerate(stems):
        random = np.random.default_rng(index)
        disc = (rows - random.integers(10, 38)) ** 2 + (columns - random.integers(10, 46)) ** 2
        disc = disc < 12**2
        image = random.integers(60, 140, (height, width, 3)).astype(np.uint8)
        image[disc] = [220, 40, 40]
        near = np.zeros((height, width), bool)
        top, left = random.integers(0, [height - 32, width - 36])
        near[top : top + 32, left : left + 36] = True
        depth = np.where(near, 60, 200) + random.integers(-20, 20, near.shape)
        Image.fromarray(image).save(root / "images" / f"{stem}.png")
        Image.fromarray(depth.astype(np.uint8)).save(root / "depth" / f"{stem}.png")
        masks = {"masks": disc.astype(np.uint8), "geometry": near.astype(np.uint8)}
        masks["geometry"][:2] = 255
        for name, mask in masks.items():
            Image.fromarray(mask).save(root / name / f"{stem}.png")


def config_of(folder: Path, **data: Any) -> Config:
    config = Config()
    config.data.name, config.data.root = "folder", str(folder)
    config.data.prepared_dir = str(folder.parent / "prepared")
    config.data.extra_channels, config.data.label_maps = ("depth",), ("masks", "geometry")
    for name, value in data.items():
        setattr(config.data, name, value)
    config.augment.crop_px, config.augment.scale = None, (1.0, 1.0)
    config.model.skips = 2
    config.model.upsampling = "fixed"
    config.optim.learning_rate = 1e-2
    config.train.batch_size = config.eval.batch_size = 4
    config.train.steps = 80
    config.train.eval_every_steps = 80
    return config


def open_set(folder: Path, **data: Any) -> Dataset:
    return open_dataset(config_of(folder, **data).data)


def refuses(folder: Path, message: str, **data: Any) -> None:
    with pytest.raises(UserError, match=message) as caught:
        open_set(folder, **data)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("drawn") / "set"
    write_set(path)
    return path


@pytest.fixture
def own(drawn: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    shutil.copytree(drawn, tmp_path / "set")
    return tmp_path / "set"


def test_channels_and_maps_are_read_in_the_order_given(drawn: Path) -> None:
    dataset = open_set(drawn)
    assert dataset.channels == 4
    assert dataset.label_maps == {"masks": ("ground", "disc"), "geometry": ("far", "near")}
    assert dataset.num_classes == {"masks": 2, "geometry": 2}
    split = dataset.split("train+val")
    record = split[3]
    stem = record["name"]
    for channels, folder in ((np.s_[:3], "images"), (3, "depth")):
        expected = np.asarray(Image.open(drawn / folder / f"{stem}.png"))
        np.testing.assert_array_equal(record["image"][..., channels], expected)
    np.testing.assert_array_equal(split.label(3), record["label"])
    for name, label in by_map(record["label"], ("masks", "geometry")).items():
        np.testing.assert_array_equal(label, read_mask(drawn / name / f"{stem}.png"))
    turned = open_set(drawn, label_maps=("geometry", "masks"))
    assert turned.class_names == ("far", "near")


def test_labels_are_counted_by_map(drawn: Path) -> None:
    statistics = open_set(drawn).statistics("train+val")
    for name, counts in statistics.label_counts.items():
        masks = [read_mask(path) for path in (drawn / name).iterdir()]
        expected = np.bincount(np.concatenate(masks).ravel(), minlength=256)
        np.testing.assert_array_equal(counts, expected)


def test_a_single_map_of_another_name_has_no_name(drawn: Path) -> None:
    dataset = open_set(drawn, label_maps=("geometry",), extra_channels=())
    assert dataset.label_maps == {"": ("far", "near")}
    assert dataset.channels == 3
    record = dataset.split("train")[0]
    expected = read_mask(drawn / "geometry" / f"{record['name']}.png")
    np.testing.assert_array_equal(record["label"], expected)


def test_channels_of_colour_files_in_other_formats(own: Path) -> None:
    (own / "hha").mkdir()
    for path in (own / "images").iterdir():
        Image.new("RGB", (56, 48), (1, 2, 3)).save(own / "hha" / f"{path.stem}.bmp")
    dataset = open_set(own, extra_channels=("hha", "depth"))
    assert dataset.channels == 7
    record = dataset.split("val")[0]
    assert (record["image"][..., 3:6] == [1, 2, 3]).all()
    depth = np.asarray(Image.open(own / "depth" / f"{record['name']}.png"))
    np.testing.assert_array_equal(record["image"][..., 6], depth)


def test_bad_channels_are_named_before_training(own: Path) -> None:
    good = (own / "depth/c.png").read_bytes()
    (own / "depth/c.png").unlink()
    refuses(own, r"images without a file of extra channels: images/c\.png \(in depth/\)")
    Image.new("L", (9, 8)).save(own / "depth/c.png")
    refuses(own, r"depth/c\.png: is 9 × 8, but its image .*images/c\.png is 56 × 48")
    Image.new("RGB", (56, 48)).save(own / "depth/c.png")
    refuses(own, r"depth/c\.png: has 3 channels, but the first file of its folder 1")
    Image.fromarray(np.zeros((48, 56), np.uint16)).save(own / "depth/c.png")
    refuses(own, r"depth/c\.png: more than 8 bits a channel; scale .* to 0…255")
    (own / "depth/c.png").write_bytes(good[:200])
    refuses(own, r"depth/c\.png: the image is damaged")
    (own / "depth/c.png").write_bytes(good)
    refuses(
        own,
        r"dept: no such folder; config\.data\.extra_channels .* has depth, geometry, im",
        extra_channels=("dept",),
    )


def test_bad_maps_are_named_before_training(own: Path) -> None:
    (own / "geometry/c.png").unlink()
    refuses(own, r"1 images without a mask of geometry: c ")
    Image.new("L", (56, 48), 3).save(own / "geometry/c.png")
    refuses(own, r"geometry/c\.png: label 3 is outside 0 to 1 \(2 classes")
    Image.new("L", (8, 9), 1).save(own / "geometry/c.png")
    refuses(own, r"geometry/c\.png: the mask is 8 × 9, but its image")
    (own / "geometry.txt").unlink()
    refuses(own, r"geometry\.txt: missing; write one class name per line")
    refuses(own, r"parts: no such folder; config\.data\.label_maps", label_maps=("masks", "parts"))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("label_maps", ("masks", "masks")),
        ("label_maps", ("masks", "auxiliary")),
        ("label_maps", ()),
        ("extra_channels", ("../depth",)),
        ("extra_channels", ("images",)),
    ],
)
def test_names_that_cannot_be_folders_are_refused(drawn: Path, setting: str, value: tuple) -> None:
    message = rf"data\.{setting} \(={','.join(value)}\) must be different names of sub-folders"
    refuses(drawn, message, **{setting: value})


def test_other_data_sets_have_three_channels_and_one_map(drawn: Path) -> None:
    refuses(
        drawn,
        r"label_maps \(=masks,depth\) must name the label maps of shapes, which has a single one",
        name="shapes",
        root=None,
        label_maps=("masks", "depth"),
    )


# --- The whole line


@pytest.fixture(scope="module")
def run_folder(drawn: Path) -> Path:
    train(config_of(drawn), drawn.parent / "run")
    return drawn.parent / "run"


def test_the_map_that_only_depth_shows_is_learned_from_depth(run_folder: Path, drawn: Path) -> None:
    written = {
        name: json.loads((run_folder / f"evaluation/val_{name}.json").read_text())
        for name in ("masks", "geometry")
    }
    assert list(written["geometry"]["per_class_iou"]) == ["far", "near"]
    assert written["masks"]["pixel_accuracy"] > 0.9
    assert written["geometry"]["pixel_accuracy"] > 0.9
    for name in ("val_masks_sheet.png", "val_geometry_confusion.png"):
        assert (run_folder / "evaluation" / name).stat().st_size > 0
    # The same pictures with each other's depth: the masks stay, the geometry goes with the depth.
    run = load_run(run_folder)
    one, other = (image_files.read_input(run, drawn / f"images/{stem}.png") for stem in ("a", "b"))
    swapped = run(np.concatenate([one[..., :3], other[..., 3:]], axis=-1))
    assert isinstance(swapped, dict)
    for name, stem in (("masks", "a"), ("geometry", "b")):
        truth = read_mask(drawn / name / f"{stem}.png")
        assert (swapped[name] == truth)[truth != 255].mean() > 0.9


def test_the_run_says_what_it_was_made_with(run_folder: Path) -> None:
    stored = json.loads((run_folder / "run.json").read_text())
    assert stored["channels"] == 4
    assert stored["class_names"] == {"masks": ["ground", "disc"], "geometry": ["far", "near"]}
    run = load_run(run_folder, "best")
    assert run.label_maps == {"masks": ("ground", "disc"), "geometry": ("far", "near")}
    with pytest.raises(
        ValueError, match=r"shape \(8, 8, 3\)\) must be uint8 \(h, w, 4\): RGB and d"
    ):
        run(np.zeros((8, 8, 3), np.uint8))
    lines = [json.loads(line) for line in (run_folder / "log.jsonl").read_text().splitlines()]
    last = next(line for line in lines if line["kind"] == "eval")
    masks, geometry = (
        json.loads((run_folder / f"evaluation/val_{name}.json").read_text())["mean_iou"]
        for name in ("masks", "geometry")
    )
    assert (last["mean_iou_masks"], last["mean_iou_geometry"]) == (masks, geometry)


def test_predict_finds_the_channels_and_writes_each_map(
    run_folder: Path, own: Path, tmp_path: Path
) -> None:
    (own / "depth/b.png").unlink()
    options = (f"--workdir={run_folder}", "--overlay")
    result = command("predict", *options, f"--output={tmp_path}/out", own / "images/[ab].png")
    assert result.returncode == 1
    assert "1 of 2 images failed" in result.stderr
    assert f"its depth must be one file {own}/depth/b.png" in result.stderr
    expected = load_run(run_folder).predict_maps(
        image_files.read_input(load_run(run_folder), own / "images/a.png")
    )
    for name in ("masks", "geometry"):
        np.testing.assert_array_equal(read_mask(tmp_path / f"out/{name}/a.png"), expected[name])
        assert (tmp_path / f"out/{name}/overlay/a.png").exists()
    before = (own / "masks/a.png").read_bytes()
    result = command("predict", *options, f"--output={own}", own / "images/a.png")
    assert "and perhaps folders of masks" in result.stderr
    assert (own / "masks/a.png").read_bytes() == before


def test_evaluate_scores_each_map(run_folder: Path) -> None:
    result = command("evaluate", f"--workdir={run_folder}", "--split=train")
    assert result.returncode == 0, result.stderr
    assert result.stdout.index("label map masks") < result.stdout.index("label map geometry")
    for name in ("masks", "geometry"):
        numbers = json.loads((run_folder / f"evaluation/train_{name}.json").read_text())
        assert numbers["images"] == 10
        assert numbers["pixel_accuracy"] > 0.9


def test_channels_beside_an_image(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own / "images")
    assert find_channel_files(Path("a.png"), ["depth"]) == [own / "depth/a.png"]
    assert find_channel_files(Path("a.png"), []) == []
    shutil.copy(own / "depth/a.png", own / "depth/a.tif")
    with pytest.raises(UserError, match=r"a\.png: its depth must be one file .*; there are 2"):
        find_channel_files(Path("a.png"), ["depth"])


@pytest.mark.slow
def test_late_fusion_takes_the_same_data(drawn: Path, tmp_path: Path) -> None:
    config = config_of(drawn)
    config.model.fusion = "late"
    config.loss.class_weights = "balanced"
    config.train.steps = 1
    train(config, tmp_path / "run")
    run = load_run(tmp_path / "run")
    labels = run(image_files.read_input(run, drawn / "images/a.png"))
    assert isinstance(labels, dict)
    assert {name: label.shape for name, label in labels.items()} == {
        "masks": (48, 56),
        "geometry": (48, 56),
    }


def test_settings_that_do_not_go_with_the_data(
    run_folder: Path, drawn: Path, tmp_path: Path
) -> None:
    config = config_of(drawn)
    config.loss.class_weights = (1.0, 2.0)
    with pytest.raises(UserError, match=r"must be balanced or None with several label maps"):
        train(config, tmp_path / "numbers")
    config.data.extra_channels, config.model.fusion = (), "late"
    with pytest.raises(UserError, match=r"needs images of more than 3 channels, not 3"):
        train(config, tmp_path / "colour")
    with pytest.raises(UserError, match=r"its images have 4 channels, not 3"):
        train(config, run_folder)


def test_settings_from_the_terminal(drawn: Path, tmp_path: Path) -> None:
    result = command(
        "train",
        "--config=configs/folder.py",
        f"--config.data.root={drawn}",
        f"--config.data.prepared_dir={tmp_path}",
        "--config.data.extra_channels=depth",
        "--config.data.label_maps=masks,parts",
        f"--workdir={tmp_path}/run",
    )
    assert result.returncode == 1
    assert result.stderr == (
        f"train: {drawn}/parts: no such folder; config.data.label_maps names folders in {drawn}, "
        "which has depth, geometry, images, masks\n"
    )
