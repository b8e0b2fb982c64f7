"""Intermediate results of a network, and the command that draws them."""

import dataclasses
import itertools
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import fcn_jax
from fcn_jax.errors import UserError
from fcn_jax.inference import inside
from fcn_jax.inference.inside import (
    Opened,
    at_pixels,
    feature_maps,
    first_filters,
    open_network,
    receptive_field,
    skips,
)
from fcn_jax.models.geometry import Grid
from tests.in_process import run_command
from tests.serve.images import drawn, encoded


@pytest.fixture(scope="module")
def opened(trained_run) -> Opened:
    """The network of the tiny run with random score layers."""
    opened = open_network(trained_run)
    random = np.random.default_rng(0)
    for stage in opened.model.stages:
        kernel = getattr(opened.model.head, f"score{stage}").kernel
        kernel[...] = jnp.asarray(random.standard_normal(kernel.shape), jnp.float32)
    return opened


def test_a_map_is_interpolated_between_the_centres_of_its_positions():
    grid = Grid(stride=4, offset=1.5)
    centres = 4 * np.arange(6) + 1.5
    values = np.stack(np.meshgrid(centres, centres, indexing="ij"), axis=-1)
    found = at_pixels(values, grid, (20, 22))
    assert found.shape == (20, 22, 2)
    np.testing.assert_allclose(found[2:, 5, 0], np.arange(2, 20))
    np.testing.assert_allclose(found[5, 2:, 1], np.arange(2, 22))
    np.testing.assert_allclose(found[0, :, 0], 1.5)  # before the first centre


def test_each_skip_is_added_to_the_upsampled_scores_before_it(opened):
    image = drawn(96, 64)
    found = skips(opened, image)
    assert [skip.stride for skip in found] == list(opened.model.stages)
    np.testing.assert_array_equal(found[0].own, found[0].fused)
    for coarse, fine in itertools.pairwise(found):
        added = fine.fused - fine.own
        assert np.abs(fine.own).max() > 0
        # Bilinear, up to six steps of training: the same as between the centres.
        size = fine.own.shape[:2]
        grid = Grid(
            coarse.grid.stride // fine.grid.stride,
            (coarse.grid.offset - fine.grid.offset) / fine.grid.stride,
        )
        expected = at_pixels(coarse.fused, grid, size)
        inner = np.s_[2:-2, 2:-2]
        spread = np.ptp(expected)
        np.testing.assert_allclose(added[inner], expected[inner], atol=0.05 * spread)


def test_a_network_that_was_trained_with_remat_shows_the_same(trained_run, tmp_path):
    run = shutil.copytree(trained_run, tmp_path / "run")
    settings = json.loads((run / "run.json").read_text())
    assert settings["config"]["model"]["remat"] is False
    settings["config"]["model"]["remat"] = True
    (run / "run.json").write_text(json.dumps(settings))
    image = drawn(64, 96)
    plain, remat = open_network(trained_run), open_network(run)
    maps = feature_maps(plain, image)
    for name, values in feature_maps(remat, image).items():
        np.testing.assert_array_equal(values, maps[name])
    np.testing.assert_array_equal(
        receptive_field(remat, image, (10, 12)).influence,
        receptive_field(plain, image, (10, 12)).influence,
    )


def test_the_gradient_is_zero_outside_the_theoretical_field(opened):
    image = drawn(320, 256)
    field = receptive_field(opened, image, (10, 12))
    assert field.is_bounded
    (top, bottom), (left, right) = field.rows, field.columns
    assert (top, left) == (0, 0)
    assert bottom < 255
    assert right < 319
    inside = np.zeros(image.shape[:2], bool)
    inside[top : bottom + 1, left : right + 1] = True
    assert field.influence.shape == inside.shape
    assert not field.influence[~inside].any()
    assert field.influence[inside].any()


def test_the_maps_end_with_the_features_and_begin_with_the_filters(opened):
    image = drawn(64, 48)
    maps = feature_maps(opened, image)
    features = opened.model.features(jnp.asarray(image)[None])
    last = list(maps.values())[-1]
    expected = features[f"backbone{max(opened.model.backbone.channels)}"].values[0]
    np.testing.assert_allclose(last, expected, rtol=1e-4, atol=1e-4)
    kernel = first_filters(opened)
    assert kernel.shape[2] == 3
    assert next(iter(maps.values())).shape[-1] == kernel.shape[3]


def test_on_fixed_canvases_all_sizes_share_a_compilation(opened, monkeypatch):
    traced = []
    record = inside.record_maps
    monkeypatch.setattr(
        inside, "record_maps", lambda *given: traced.append(given) or record(*given)
    )
    placed = dataclasses.replace(opened, canvases=((64, 96), (128, 128)))
    for image in (drawn(96, 64), drawn(80, 50), drawn(33, 64)):
        for name, values in feature_maps(placed, image).items():
            assert values.shape[0] <= image.shape[0]
            assert values.shape[1] <= image.shape[1], name
    assert len(traced) == 1
    exact = feature_maps(opened, image)  # of the last
    assert len(traced) == 2
    for name, values in feature_maps(placed, image).items():
        spread = np.ptp(exact[name])
        np.testing.assert_allclose(values, exact[name], atol=1e-5 * spread, err_msg=name)
    for skip, other in zip(skips(placed, image), skips(opened, image), strict=True):
        np.testing.assert_allclose(skip.fused, other.fused, atol=1e-4 * np.ptp(other.fused))
    field, other = (receptive_field(one, image, (10, 12)) for one in (placed, opened))
    assert (field.rows, field.columns, field.label) == (other.rows, other.columns, other.label)
    np.testing.assert_allclose(field.influence, other.influence, atol=1e-4 * other.influence.max())


def small_file(path, changes, channels=3):
    """Saves an untrained network with other settings than the default."""
    config = fcn_jax.Config()
    for name, value in changes.items():
        section, _, key = name.partition(".")
        setattr(getattr(config, section), key, value)
    model = fcn_jax.init_model(config.model, 3, channels=channels, seed=0)
    names = {"": ("a", "b", "c")}
    fcn_jax.Predictor.from_model(model, config=config, label_maps=names).save(path)
    return path


@pytest.mark.parametrize("fusion", ["early", "late"])
def test_extra_channels_are_read_from_their_folder(tmp_path, fusion):
    data = {"data.name": "folder", "data.extra_channels": ("depth",)}
    model = {"model.features": (8, 8), "model.skips": 1, "model.fusion": fusion}
    path = small_file(tmp_path / "deep.safetensors", data | model, channels=4)
    for name, picture in (("images", drawn(60, 40)), ("depth", drawn(60, 40)[..., 0])):
        (tmp_path / name).mkdir()
        Image.fromarray(picture).save(tmp_path / name / "x.png")
    arguments = [f"--workdir={path}", f"--output={tmp_path / 'out'}"]
    ended = run_command("inspect", *arguments, tmp_path / "images/x.png")
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "out/skips.png").exists()
    shutil.rmtree(tmp_path / "depth")
    ended = run_command("inspect", *arguments, tmp_path / "images/x.png")
    assert "its depth must be one file" in ended.stderr


def test_a_u_net_has_no_skips_to_show_and_volumes_are_refused(tmp_path):
    unet = {"model.features": (8, 8), "model.decoder": "unet"}
    path = small_file(tmp_path / "unet.safetensors", unet)
    (tmp_path / "x.png").write_bytes(encoded(drawn(60, 40)))
    arguments = [f"--workdir={path}", f"--output={tmp_path / 'out'}", tmp_path / "x.png"]
    ended = run_command("inspect", *arguments)
    assert ended.returncode == 0, ended.stderr
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"field.png", "filters.png"}
    predictor = fcn_jax.load_run(path)
    predictor.config.data.name = "volumes"
    with pytest.raises(UserError, match="the network is for volumes"):
        inside.opened_network(predictor)


def test_the_command_writes_pictures_and_a_page(trained_run, tmp_path):
    (tmp_path / "x.png").write_bytes(encoded(drawn(60, 40)))
    output = tmp_path / "out"
    ended = run_command(
        "inspect",
        f"--workdir={trained_run}",
        f"--output={output}",
        "--pixel=59,0",
        tmp_path / "x.png",
    )
    assert ended.returncode == 0, ended.stderr
    names = sorted(str(path.relative_to(output)) for path in output.rglob("*.png"))
    assert {"field.png", "filters.png", "skips.png"} < set(names)
    assert all(
        name.startswith("layers/") for name in set(names[:-1]) - {"field.png", "filters.png"}
    )
    with Image.open(output / "field.png") as picture:
        assert picture.size == (60, 40)
    page = (output / "index.html").read_text(encoding="utf-8")
    assert page.count("<img") == len(names)
    assert "at x 59, y 0" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{image}"], "--output=OUT and one IMAGE are needed"),
        (
            ["{image}", "--output={out}", "--pixel=60,0"],
            "--pixel (=60,0) must be x,y within 0,0 and",
        ),
        (["{image}", "--output={out}", "--pixel=middle"], "--pixel (=middle) must be x,y"),
        (["{out}/none.png", "--output={out}"], "none.png: No such file"),
    ],
)
def test_mistakes_are_said_in_a_line(trained_run, tmp_path, arguments, message):
    (tmp_path / "x.png").write_bytes(encoded(drawn(60, 40)))
    places = {"image": tmp_path / "x.png", "out": tmp_path / "out"}
    words = [word.format(**places) for word in arguments]
    ended = run_command("inspect", f"--workdir={trained_run}", *words)
    assert ended.returncode == 1
    assert message in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
