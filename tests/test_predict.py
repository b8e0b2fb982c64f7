"""The command `fcn_jax.predict` on image files, and the predictor of a run."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from fcn_jax.data import shapes
from fcn_jax.data.masks import read_mask
from fcn_jax.data.palettes import voc_palette
from fcn_jax.errors import UserError
from fcn_jax.inference.options import Inference
from fcn_jax.inference.trained import load_run
from fcn_jax.predict import predict_files
from tests.in_process import run_command


def test_predict_labels_every_kind_of_image_at_its_own_size(trained_run, tmp_path):
    image, _ = shapes.draw("val_000")
    source = tmp_path / "in"
    source.mkdir()
    picture = Image.fromarray(image)
    picture.save(source / "colour.jpg")
    picture.resize((131, 97)).convert("L").save(source / "grey.png")
    picture.convert("RGBA").save(source / "rgba.webp", lossless=True)
    (source / "cut.jpg").write_bytes((source / "colour.jpg").read_bytes()[:2000])
    (source / "words.png").write_text("no image")
    result = run_command(
        "predict", f"--workdir={trained_run}", f"--output={tmp_path}/out", "--overlay", source
    )
    assert result.returncode == 1
    assert "2 of 5 images failed" in result.stderr
    assert "cut.jpg" in result.stderr
    assert "words.png" in result.stderr
    written = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert written == ["colour.png", "grey.png", "rgba.png"]
    with Image.open(tmp_path / "out/grey.png") as label:
        assert (label.mode, label.size) == ("P", (131, 97))
        assert label.getpalette()[:9] == voc_palette()[:3].ravel().tolist()
    # Lossless, so the file gives what the array gives.
    np.testing.assert_array_equal(
        read_mask(tmp_path / "out/rgba.png"), load_run(trained_run)(image)
    )
    with Image.open(tmp_path / "out/overlay/colour.png") as overlay:
        assert overlay.height > image.shape[0]


def test_an_image_that_does_not_fit_in_memory_is_predicted_in_tiles(
    trained_run, tmp_path, monkeypatch, capsys
):
    small, _ = shapes.draw("val_000")
    images = {"small.png": small, "large.tif": np.tile(small, (5, 5, 1))}
    paths = [tmp_path / name for name in images]
    for path in paths:
        Image.fromarray(images[path.name]).save(path)
    predictor = load_run(trained_run)
    monkeypatch.setattr("fcn_jax.predict.SURELY_FITS_PX", 0)
    monkeypatch.setattr("fcn_jax.predict.DEFAULT_TILE_PX", 64)
    # With --flip the small image needs more, but less than the large one as a whole.
    enough = predictor.estimated_bytes(small.shape[:2], Inference(flip=True))
    monkeypatch.setattr("fcn_jax.predict.SAFE_SHARE", 1)
    monkeypatch.setattr("fcn_jax.predict.free_bytes", lambda: enough)
    predict_files(predictor, paths, tmp_path / "out")
    printed = capsys.readouterr().out
    height, width, _ = images["large.tif"].shape
    assert f"large.tif has {width} × {height} pixels: as a whole it needs about" in printed
    assert "predicting in tiles of 64 pixels" in printed
    assert "2 label maps in" in printed
    for name, image in images.items():
        label = read_mask((tmp_path / "out" / name).with_suffix(".png"))
        np.testing.assert_array_equal(label, predictor(image), err_msg=name)
    predict_files(predictor, paths, tmp_path / "out")
    assert "2 of 2 are up to date" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"(?s)1 of 2 images failed:.*use --tile=1024 instead of"):
        predict_files(predictor, paths, tmp_path / "out", inference=Inference(flip=True))


def test_predict_refuses_what_would_overwrite(trained_run, tmp_path):
    image, _ = shapes.draw("val_000")
    for name in ("x.png", "x.jpg"):
        Image.fromarray(image).save(tmp_path / name)
    before = (tmp_path / "x.png").read_bytes()
    onto_itself = run_command(
        "predict", f"--workdir={trained_run}", f"--output={tmp_path}", tmp_path / "x.png"
    )
    assert f"{tmp_path} is the folder of {tmp_path}/x.png" in onto_itself.stderr
    twice = run_command("predict", f"--workdir={trained_run}", f"--output={tmp_path}/out", tmp_path)
    assert "would both be written" in twice.stderr
    assert onto_itself.returncode == twice.returncode == 1
    assert (tmp_path / "x.png").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdir={empty}", "--output={empty}/o", "{images}"], "is not the folder of a run"),
        (
            ["--workdir={run}", "--checkpoint=5", "--output={empty}/o", "{images}"],
            "has no checkpoint 5 (it holds: 3, 6)",
        ),
        (["--workdir={run}", "--output={empty}/o", "{empty}"], "holds no images"),
        (["--workdir={run}", "--output={empty}/o", "none*.jpg"], "none*.jpg: no such"),
        (["--workdir={run}"], "are needed"),
    ],
)
def test_mistakes_are_reported_in_one_line(
    trained_run, trained_folder, tmp_path, arguments, message
):
    places = {"run": trained_run, "empty": tmp_path, "images": trained_folder / "data/images"}
    result = run_command("predict", *[argument.format(**places) for argument in arguments])
    assert result.returncode == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1, result.stderr


def test_a_checkpoint_of_another_network_is_refused(trained_run, tmp_path):
    copy = tmp_path / "changed"
    shutil.copytree(trained_run, copy)
    settings = json.loads((copy / "run.json").read_text())
    settings["class_names"] = settings["class_names"][:-1]
    (copy / "run.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="does not hold this network"):
        load_run(copy)


def test_an_image_of_other_channels_is_refused_by_number(trained_run):
    image, _ = shapes.draw("val_000")
    with pytest.raises(ValueError, match=r"must be uint8 \(h, w, 3\), RGB"):
        load_run(trained_run)(image[..., :1])


def test_shards_predict_every_image_once_and_do_not_repeat_themselves(
    trained_run, trained_folder, tmp_path
):
    images = sorted((trained_folder / "data/images").iterdir())

    def predict(folder, *flags):
        given = [f"--workdir={trained_run}", f"--output={tmp_path / folder}", *flags]
        ended = run_command("predict", *given, images[3], trained_folder / "data/images")
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def written(folder):
        return {path.name: path.read_bytes() for path in (tmp_path / folder).glob("*.png")}

    predict("whole")
    assert "shard 1/3: 2 of 7 images" in predict("shared", "--shard=1/3")
    assert sorted(written("shared")) == [images[1].name, images[4].name]
    for index in (0, 2):
        predict("shared", f"--shard={index}/3")
    assert written("shared") == written("whole")
    label = tmp_path / "shared" / images[1].name
    made = label.stat().st_mtime_ns
    assert "2 of 2 are up to date" in predict("shared", "--shard=1/3")
    assert label.stat().st_mtime_ns == made
    assert "up to date" not in predict("shared", "--shard=1/3", "--flip")
    assert label.stat().st_mtime_ns != made
    assert "shard 8/9: 0 of 7 images" in predict("shared", "--shard=8/9")


def test_label_maps_have_the_colours_of_the_data_set(trained_run, tmp_path):
    image, _ = shapes.draw("val_000")
    Image.fromarray(image).save(tmp_path / "a.png")
    shutil.copytree(trained_run, tmp_path / "run")
    path = tmp_path / "run/run.json"
    (tmp_path / "out").mkdir()
    colours = [[1, 2, 3], [250, 50, 83]]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"colours": colours}))
    predict_files(load_run(tmp_path / "run"), [tmp_path / "a.png"], tmp_path / "out", overlay=True)
    with Image.open(tmp_path / "out/a.png") as label:
        assert label.getpalette()[:9] == [1, 2, 3, 250, 50, 83, *voc_palette()[2]]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"colours": [[1, 2, 300]]}))
    with pytest.raises(UserError, match="colours are not up to 255 triples of 0 to 255"):
        load_run(tmp_path / "run")
