"""Tiles give the label map of the whole image, also after interruptions."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from fcn_jax import predict
from fcn_jax.config import ModelConfig, default_config
from fcn_jax.data.labels import IGNORE_INDEX
from fcn_jax.data.masks import read_mask
from fcn_jax.errors import UserError
from fcn_jax.export import export
from fcn_jax.inference import image_files, tiles
from fcn_jax.inference.resume import UnfinishedTiles
from fcn_jax.inference.tiles import Tiling, predict_tiles, receptive_field, tiling
from fcn_jax.inference.trained import Predictor, load_run
from fcn_jax.models.backbones import resnet, vgg
from fcn_jax.models.backbones.alexnet import AlexNet
from fcn_jax.models.backbones.mobilenet import MobileNetV3Large
from fcn_jax.models.backbones.resnet import ResNet
from fcn_jax.models.backbones.small import SmallNet
from fcn_jax.models.backbones.squeezenet import SqueezeNet
from fcn_jax.models.backbones.vgg import VGG16
from fcn_jax.models.build import build_model
from fcn_jax.models.fcn import FCN
from fcn_jax.models.feature_map import TilePosition
from fcn_jax.models.geometry import ReceptiveField
from fcn_jax.models.pure_model import PureModel
from fcn_jax.pretrained import Provenance
from fcn_jax.terminal.signals import StopSignal
from tests.in_process import run_command
from tests.own_folder import ROOT
from tests.terminal.test_signals import during_garbage_collection

CLASSES = tuple(f"class {n}" for n in range(5))

NEVER = StopSignal("tile")


def picture(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)


# Cutting an image


def test_tiles_by_hand() -> None:
    # Alignment 32: 100 becomes 96. The halo of 40 starts at 56, so the input starts at 32.
    cut = tiling(ReceptiveField(1, -40, 25, alignment=32), 100)
    assert cut == Tiling(tile=96, before=40, after=25, alignment=32, is_exact=True)
    tiles = cut.tiles((200, 97))
    assert [(t.rows, t.input_rows) for t in tiles[::2]] == [
        (slice(0, 96), slice(0, 121)),
        (slice(96, 192), slice(32, 200)),
        (slice(192, 200), slice(128, 200)),
    ]
    assert [(t.columns, t.input_columns) for t in tiles[:2]] == [
        (slice(0, 96), slice(0, 97)),
        (slice(96, 97), slice(32, 97)),
    ]
    # The largest input reaches from 64 before to 25 beyond, rounded up; the image is narrower.
    assert cut.canvas((200, 97)) == (192, 128)
    assert cut.multiple == 32
    assert tiling(ReceptiveField(alignment=24), 100).multiple == 48
    assert str(cut) == "tiles of 96 pixels with a halo of 40 and 25 (exact)"


def test_a_smaller_halo_is_approximate_and_a_larger_one_no_more_than_exact() -> None:
    field = ReceptiveField(1, -40, 25, alignment=8)
    assert tiling(field, 64, 30) == Tiling(64, 30, 25, 8, is_exact=False)
    assert "approximate" in str(tiling(field, 64, 30))
    assert tiling(field, 64, 40) == tiling(field, 64, 1000) == tiling(field, 64)


@pytest.mark.parametrize(
    ("field", "tile", "message"),
    [
        (ReceptiveField(), 63, r"tile \(=63\) must be at least 64"),
        (ReceptiveField(alignment=96), 90, r"tile \(=90\) must be at least 96"),
        (
            ReceptiveField().unbounded(),
            512,
            "halo .* averages over the whole image .*; 256 averages over each tile",
        ),
    ],
)
def test_impossible_tiles_are_refused(field: ReceptiveField, tile: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiling(field, tile)


# The label map of the whole image


def fcn(backbone: Callable[[], Any], **arguments: Any) -> Callable[[], FCN]:
    return lambda: FCN(backbone(), 5, rngs=nnx.Rngs(0), **arguments)


def small() -> SmallNet:
    return SmallNet(features=(4, 6, 8, 10, 12), rngs=nnx.Rngs(0))


NETWORKS: dict[str, tuple[Callable[[], FCN], tuple[int, int]]] = {
    "small, 32s": (fcn(small, skips=0), (397, 150)),
    "small, 8s, as if centred on blocks": (
        fcn(small, skips=2, half_pixel=True, upsampling="fixed"),
        (397, 150),
    ),
    "resnet18, 8s": (fcn(lambda: ResNet(18, rngs=nnx.Rngs(0)), skips=2), (700, 40)),
    "squeezenet, 8s with context": (
        fcn(lambda: SqueezeNet(rngs=nnx.Rngs(0)), skips=2, context_features=8),
        (607, 40),
    ),
    "vgg16, 8s": (fcn(lambda: VGG16(fc_features=8, rngs=nnx.Rngs(0)), skips=2), (40, 680)),
    "alexnet, 16s, padded by 100": (
        fcn(lambda: AlexNet(padding="paper", fc_features=8, rngs=nnx.Rngs(0)), skips=1),
        (613, 40),
    ),
    "dilated resnet, interpolating": (
        fcn(
            lambda: ResNet(50, output_stride=8, rngs=nnx.Rngs(0)),
            skips=0,
            hidden=True,
            upsampling="interpolate",
        ),
        (461, 100),
    ),
}
"""Networks, and heights and widths of images that need several tiles."""


def tiled(network: PureModel, cut: Tiling, image: np.ndarray) -> dict[str, np.ndarray]:
    size = image.shape[:2]
    label = {name: np.full(size, IGNORE_INDEX, np.uint8) for name in network.label_maps}
    tiles = cut.tiles(size)
    read = lambda rows, columns: image[rows, columns]  # noqa: E731
    parts = predict_tiles(network, network.variables, cut, size, tiles, read)
    for tile, labels in zip(tiles, parts, strict=True):
        for name, part in labels.items():
            assert part.dtype == np.uint8
            label[name][tile.rows, tile.columns] = part
    return label


def whole_logits(network: PureModel, image: np.ndarray) -> np.ndarray:
    run = jax.jit(lambda variables, image: network(variables, image)[0]["logits"])
    return np.asarray(run(network.variables, image[None])[0])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_label_map_is_that_of_the_whole_image(
    name: str, randomised: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(resnet.DEPTHS, 50, (1, 1, 1, 1))
    narrow = tuple((features // 8, depth) for features, depth in vgg.BLOCKS)
    monkeypatch.setattr(vgg, "BLOCKS", narrow)
    make, size = NETWORKS[name]
    network = PureModel(randomised(make))
    cut = tiling(receptive_field(network, network.variables), 64)
    assert cut.is_exact
    # The input of some tile touches neither border of the image.
    assert any(
        (tile.input_rows.start and tile.input_rows.stop < size[0])
        or (tile.input_columns.start and tile.input_columns.stop < size[1])
        for tile in cut.tiles(size)
    )
    image = picture(*size)
    logits = whole_logits(network, image)
    label = tiled(network, cut, image)[""]
    assert len(np.unique(label)) > 1
    # If two classes have nearly the same score, either may be predicted.
    decided = np.diff(np.sort(logits, -1)[..., -2:])[..., 0] > 1e-5 * np.ptp(logits)
    print(f"\n{name}: halo {cut.before} and {cut.after}, {(~decided).sum()} ties")
    assert decided.mean() > 0.999
    np.testing.assert_array_equal(label[decided], logits.argmax(-1)[decided])


def test_the_logits_are_those_of_the_whole_image(randomised: Any) -> None:
    make = fcn(small, skips=1, context_features=4, upsampling="interpolate")
    network = PureModel(randomised(make))
    cut = tiling(receptive_field(network, network.variables), 64)
    image = picture(1103, 70)
    size = image.shape[:2]
    expected = whole_logits(network, image)

    @jax.jit
    def run(image: jax.Array, valid: jax.Array, part: TilePosition) -> jax.Array:
        return network(network.variables, image, valid=valid, tile=part)[0]["logits"][0]

    largest, inner = 0.0, 0
    for tile in cut.tiles(size):
        seen = image[tile.input_rows, tile.input_columns]
        canvas = np.full((1, *cut.canvas(size), 3), 255, np.uint8)
        canvas[0, : seen.shape[0], : seen.shape[1]] = seen
        top, left = tile.input_rows.start, tile.input_columns.start
        part = TilePosition(jnp.asarray([[top, left]]), jnp.asarray([size]))
        logits = run(jnp.asarray(canvas), jnp.asarray([seen.shape[:2]]), part)
        rows = slice(tile.rows.start - top, tile.rows.stop - top)
        columns = slice(tile.columns.start - left, tile.columns.stop - left)
        difference = logits[rows, columns] - expected[tile.rows, tile.columns]
        largest = max(largest, float(np.abs(difference).max()))
        inner += top > 0 and tile.input_rows.stop < size[0]
    assert inner > 1
    assert largest < 1e-5 * np.ptp(expected)


def test_too_small_a_halo_changes_the_label_map(randomised: Any) -> None:
    # Otherwise the tests above would show nothing.
    network = PureModel(randomised(NETWORKS["small, 32s"][0]))
    field = receptive_field(network, network.variables)
    image = picture(397, 150)
    exact, approximate = (tiled(network, tiling(field, 64, halo), image)[""] for halo in (None, 16))
    assert 0.001 < (exact != approximate).mean() < 0.5


def test_all_tiles_share_one_compilation(randomised: Any, caplog: pytest.LogCaptureFixture) -> None:
    network = PureModel(randomised(NETWORKS["small, 32s"][0]))
    cut = tiling(receptive_field(network, network.variables), 64)
    with jax.log_compiles():
        tiled(network, cut, picture(397, 150))
    assert caplog.text.count("Finished XLA compilation of jit(label_tile)") == 1


def test_squeeze_and_excitation_is_refused() -> None:
    model = nnx.eval_shape(fcn(lambda: MobileNetV3Large(rngs=nnx.Rngs(0)), skips=0))
    network = PureModel(model)
    field = receptive_field(network, network.variables)
    with pytest.raises(UserError, match="averages over the whole image"):
        tiling(field, 512)
    assert tiling(field, 512, 100) == Tiling(512, 100, 100, 32, is_exact=False)


# From the command line


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported run of random weights, with two label maps."""
    config = default_config()
    config.model = ModelConfig(backbone="small", skips=2)
    config.data.label_maps = ("masks", "heights")
    label_maps = {"masks": CLASSES, "heights": CLASSES[:3]}
    counts = {name: len(names) for name, names in label_maps.items()}
    network = PureModel(nnx.eval_shape(lambda: build_model(config.model, counts, rngs=nnx.Rngs(0))))
    random = np.random.default_rng(0)

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        values = random.standard_normal(leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
        return (np.abs(values) if path[-1].key == "var" else values).astype(np.float32)

    variables = jax.tree_util.tree_map_with_path(draw, network.variables)
    folder = tmp_path_factory.mktemp("run")
    export(Predictor(network, variables, Provenance(config, label_maps, step=7)), folder, {})
    return folder


@pytest.fixture(scope="module")
def predictor(run_folder: Path) -> Predictor:
    """The exported network, loaded once, so that the tests share its compilations."""
    return load_run(run_folder)


@pytest.fixture(scope="module")
def cut(predictor: Predictor) -> Tiling:
    """Exact tiles of 64 pixels."""
    return tiling(receptive_field(predictor.network, predictor.variables), 64)


def write_scene(path: Path, image: np.ndarray) -> np.ndarray:
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed")
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=image.shape[0],
        width=image.shape[1],
        count=3,
        dtype="uint8",
        tiled=True,
        crs="EPSG:32633",
        transform=rasterio.Affine(2, 0, 500, 0, -2, 900),
    ) as file:
        file.write(np.moveaxis(image, -1, 0))
    return image


def test_a_signal_during_garbage_collection_ends_after_the_tile(
    predictor: Predictor, cut: Tiling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Python would drop an exception that the signal's handler raised there."""
    Image.fromarray(picture(300, 200)).save(tmp_path / "a.png")
    target = tmp_path / "out/a.png"
    append = UnfinishedTiles.append

    def interrupted_append(self: UnfinishedTiles, labels: Any) -> None:
        append(self, labels)
        if self.count == 3:
            during_garbage_collection(lambda: signal.raise_signal(signal.SIGINT))

    monkeypatch.setattr(UnfinishedTiles, "append", interrupted_append)
    with StopSignal("tile") as stop, pytest.raises(SystemExit) as ended:
        image_files.predict_file_in_tiles(
            predictor, tmp_path / "a.png", target, cut, overlay=False, stop=stop
        )
    assert ended.value.code == 130
    printed = capsys.readouterr().out
    assert "stopping after this tile" in printed
    assert "3 of 20 tiles are kept" in printed
    assert json.loads((tmp_path / "out/a.png.part.json").read_text())["tiles"] == 3
    assert not (tmp_path / "out/masks").exists()


def test_a_scene_interrupted_three_times_has_the_whole_images_label_map(
    run_folder: Path, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = write_scene(tmp_path / "scene.tif", picture(700, 600))
    out = tmp_path / "out"
    arguments = [f"--workdir={run_folder}", f"--output={out}", "--tile=64", "--overlay"]
    arguments.append(str(tmp_path / "scene.tif"))
    state = out / "scene.tif.part.json"

    # A kill, which only a process of its own can show.
    process = subprocess.Popen(
        [sys.executable, "-m", "fcn_jax.predict", *arguments], cwd=ROOT, stdout=subprocess.PIPE
    )
    done = 0
    try:
        deadline = time.monotonic() + 120
        while done < 5 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
            done = json.loads(state.read_text())["tiles"] if state.exists() else 0
        process.kill()
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert 5 <= done < 110
    assert not (out / "masks").exists()

    append = UnfinishedTiles.append
    for interruption in (signal.SIGINT, signal.SIGTERM):
        done = json.loads(state.read_text())["tiles"]

        def interrupted_append(
            self: UnfinishedTiles,
            labels: Any,
            stop_at: int = done + 5,
            number: int = interruption,
        ) -> None:
            append(self, labels)
            if self.count == stop_at:
                signal.raise_signal(number)

        monkeypatch.setattr(UnfinishedTiles, "append", interrupted_append)
        result = run_command("predict", *arguments)
        assert result.returncode == 128 + interruption
        assert f"{done + 5} of 110 tiles are kept" in result.stdout
        assert "Traceback" not in result.stderr
        assert not (out / "masks").exists()
    monkeypatch.undo()

    result = run_command("predict", *arguments)
    assert result.returncode == 0, result.stderr
    resumed = int(result.stderr.split("scene.tif: ")[1].split("/110 tiles")[0])
    assert resumed == done + 5
    assert "with a halo of" in result.stdout
    assert "(exact)" in result.stdout
    expected = predictor(image)
    assert isinstance(expected, dict)
    for name, label in expected.items():
        np.testing.assert_array_equal(read_mask(out / name / "scene.tif"), label)
        with Image.open(out / name / "overlay/scene.png") as overlay:
            assert overlay.width == 600
    assert sorted(path.name for path in out.iterdir()) == ["heights", "masks"]


def test_other_images_are_predicted_in_tiles_as_well(
    predictor: Predictor, cut: Tiling, tmp_path: Path
) -> None:
    image = picture(300, 200)
    Image.fromarray(image).save(tmp_path / "a.png")
    image_files.predict_file_in_tiles(
        predictor, tmp_path / "a.png", tmp_path / "out/a.png", cut, overlay=False, stop=NEVER
    )
    for name, label in predictor.predict_maps(image).items():
        np.testing.assert_array_equal(read_mask(tmp_path / "out" / name / "a.png"), label)


def test_finished_label_maps_are_not_predicted_again(
    run_folder: Path, predictor: Predictor, tmp_path: Path
) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    write_scene(photos / "a.tif", picture(100, 90))
    Image.fromarray(picture(90, 70)).save(photos / "b.png")
    arguments = [f"--workdir={run_folder}", f"--output={out}", "--tile=90"]
    first = run_command("predict", *arguments, photos)
    assert first.returncode == 0, first.stderr
    assert "are up to date" not in first.stdout
    assert "predicting in tiles of 64 pixels" in first.stdout
    assert "; --tile is rounded down to a multiple of 32\n" in first.stdout
    files = [out / name for name in ("masks/a.tif", "heights/a.tif", "masks/b.png")]
    made = [file.stat().st_mtime_ns for file in files]
    Image.fromarray(picture(30, 20)).save(photos / "c.png")
    again = run_command("predict", *arguments, photos)
    assert again.returncode == 0, again.stderr
    assert "2 of 3 are up to date\n" in again.stdout
    assert [file.stat().st_mtime_ns for file in files] == made
    for name, label in predictor.predict_maps(picture(30, 20)).items():
        np.testing.assert_array_equal(read_mask(out / name / "c.png"), label)


@pytest.mark.parametrize("name", ["a.tif", "a.png"])
def test_label_maps_of_other_inputs_are_not_up_to_date(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    image, target = tmp_path / name, tmp_path / "out" / name
    if name == "a.tif":
        write_scene(image, picture(30, 20))
    else:
        Image.fromarray(picture(30, 20)).save(image)
    cut = Tiling(64, 10, 10, 32, is_exact=False)

    def is_up_to_date(cut: Tiling = cut, *, overlay: bool = False) -> bool:
        return image_files.is_up_to_date(predictor, image, target, cut, overlay=overlay)

    assert not is_up_to_date()
    image_files.predict_file_in_tiles(predictor, image, target, cut, overlay=False, stop=NEVER)
    assert is_up_to_date()
    assert not is_up_to_date(overlay=True)
    assert not is_up_to_date(Tiling(64, 10, 11, 32, is_exact=False))
    assert not is_up_to_date(Tiling(96, 10, 10, 32, is_exact=False))
    about = image.stat()
    os.utime(image, ns=(about.st_atime_ns, about.st_mtime_ns + 1))
    assert not is_up_to_date()
    os.utime(image, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert is_up_to_date()
    # An interrupted run has left its tiles.
    part = tmp_path / "out" / f"{name}.part"
    part.touch()
    assert not is_up_to_date()
    part.unlink()
    # A label map without a digest.
    whole = read_mask(tmp_path / "out/heights" / name)
    Image.fromarray(whole).save(tmp_path / "out/heights" / name)
    assert not is_up_to_date()
    image_files.predict_file_in_tiles(predictor, image, target, cut, overlay=True, stop=NEVER)
    assert is_up_to_date()
    assert is_up_to_date(overlay=True)
    monkeypatch.setitem(predictor.__dict__, "digest", "of other weights")
    assert not is_up_to_date()


def test_a_scenes_missing_pixels_are_ignored(
    predictor: Predictor, cut: Tiling, tmp_path: Path
) -> None:
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed")
    image = picture(150, 90) | 1
    image[:70, :20] = 0
    write_scene(tmp_path / "a.tif", image)
    with rasterio.open(tmp_path / "a.tif", "r+") as file:
        file.nodata = 0
    image_files.predict_file_in_tiles(
        predictor, tmp_path / "a.tif", tmp_path / "out/a.tif", cut, overlay=True, stop=NEVER
    )
    for name, label in predictor.predict_maps(image).items():
        label[:70, :20] = IGNORE_INDEX
        np.testing.assert_array_equal(read_mask(tmp_path / "out" / name / "a.tif"), label)


def test_a_full_disk_is_reported_before_anything_is_done(
    predictor: Predictor, cut: Tiling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scene(tmp_path / "a.tif", picture(1000, 1000))
    free = type("Usage", (), {"free": 3_900_000})
    monkeypatch.setattr(image_files.shutil, "disk_usage", lambda _: free)
    # Two label maps, each twice: as tiles and as files.
    with pytest.raises(UserError, match="out has 4 MB free, and up to 4 MB are needed"):
        image_files.predict_file_in_tiles(
            predictor, tmp_path / "a.tif", tmp_path / "out/a.tif", cut, overlay=False, stop=NEVER
        )


def test_too_little_memory_is_reported_with_the_remedy(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*_: Any) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(tiles, "label_tile", out_of_memory)
    Image.fromarray(picture(20, 20)).save(tmp_path / "a.png")
    cut = Tiling(64, 10, 10, 32, is_exact=True)
    with pytest.raises(UserError, match=r"tiles of 64 pixels .* device's memory: .*smaller"):
        image_files.predict_file_in_tiles(
            predictor, tmp_path / "a.png", tmp_path / "out/a.png", cut, overlay=False, stop=NEVER
        )


@pytest.mark.parametrize(
    ("images", "output", "message"),
    [
        (["a.tif"], ".", r"is the folder of .*a\.tif, .*: give another --output"),
        (["b.jpg"], "out/..", r"is the folder of .*b\.jpg"),
        (["links/c.tif"], "links", r"is the folder of .*links/c\.tif"),
        (["links/c.tif"], ".", r"is the folder of .*links/c\.tif"),
        (["out/masks/overlay/d.png"], "out", r"out/masks/overlay is the folder of .*d\.png"),
        (["out/masks/overlay/d.png"], "out/masks", r"contains the folder of .*d\.png"),
        (["b.png", "b.jpg"], "out", r"b\.png and .*b\.jpg would both be written"),
        (["b.png"], "labelled", r"labelled/heights/b\.png exists and was not written by predict"),
    ],
)
@pytest.mark.parametrize("tiled", [False, True])
def test_files_of_others_are_not_replaced(
    predictor: Predictor, tmp_path: Path, images: list[str], output: str, message: str, tiled: bool
) -> None:
    write_scene(tmp_path / "a.tif", picture(70, 70))
    for name in ("b.png", "b.jpg", "out/masks/overlay/d.png", "labelled/heights/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(20, 20)).save(tmp_path / name)
    (tmp_path / "links").mkdir()
    (tmp_path / "links/c.tif").symlink_to(tmp_path / "a.tif")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=message):
        predict.predict_files(
            predictor,
            [tmp_path / image for image in images],
            tmp_path / output,
            overlay=True,
            cut=Tiling(64, 10, 10, 32, is_exact=False) if tiled else None,
        )
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["fifo.png", "/dev/null"])
def test_devices_and_pipes_are_not_images(tmp_path: Path, name: str) -> None:
    if name == "fifo.png":
        os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=f"{name} is not a regular file"):
        predict.find_images([str(tmp_path / name)])


def test_a_second_call_replaces_its_own_files(run_folder: Path, tmp_path: Path) -> None:
    Image.fromarray(picture(20, 20)).save(tmp_path / "b.png")
    for overlay in (True, False, True):
        predict.predict_files(
            load_run(run_folder), [tmp_path / "b.png"], tmp_path / "out", overlay=overlay
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--halo=10"], "predict: --halo (=10) needs --tile, such as --tile=1024"),
        (["--tile=20"], "predict: --tile (=20) must be at least 64, in pixels"),
    ],
)
def test_mistakes_are_one_line(
    run_folder: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    Image.fromarray(picture(20, 20)).save(tmp_path / "a.png")
    result = run_command(
        "predict", f"--workdir={run_folder}", f"--output={tmp_path}/o", *options, tmp_path / "a.png"
    )
    assert result.returncode == 1
    assert result.stderr == f"{message}\n"
    assert os.listdir(tmp_path) == ["a.png"]
