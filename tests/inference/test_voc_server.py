"""Submissions to VOC's evaluation server: layout, bytes, and what is refused before."""

import errno
import gzip
import io
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from absl import flags
from flax import nnx
from PIL import Image

from fcn_jax import predict
from fcn_jax.config import Config, default_config
from fcn_jax.data.palettes import voc_palette
from fcn_jax.data.voc import VOC_CLASSES
from fcn_jax.errors import UserError
from fcn_jax.export import export
from fcn_jax.inference import voc_server
from fcn_jax.inference.trained import Predictor
from fcn_jax.inference.voc_server import submit
from fcn_jax.models.build import build_model
from fcn_jax.models.pure_model import PureModel
from fcn_jax.pictures import overlays
from fcn_jax.pretrained import Provenance
from fcn_jax.runs import create_or_check
from tests.data.test_voc import write_voc
from tests.in_process import run_command

SIZES = {"a": (8, 6), "b": (5, 9), "c": (12, 7), "d": (70, 40), "e": (33, 65)}  # width, height
PLACE = "results/VOC2012/Segmentation/comp6_test_cls"


def write_stand_in(top: Path) -> Path:
    """A VOCdevkit of noise: a and b to train on, c to validate, d and e to test."""
    folder = write_voc(top, images="abcde")
    (folder / "ImageSets/Segmentation/test.txt").write_text("e\nd\n")
    random = np.random.default_rng(0)
    for name, (width, height) in SIZES.items():
        image = random.integers(0, 256, (height, width, 3)).astype(np.uint8)
        Image.fromarray(image).save(folder / "JPEGImages" / f"{name}.jpg")
    return folder


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    return write_stand_in(tmp_path / "data")


def voc_config(init: str | None = None) -> Config:
    config = default_config()
    config.data.name, config.init = "voc", init
    return config


@pytest.fixture
def make_run(randomised: Callable[..., Any]) -> Callable[..., Predictor]:
    def make(
        class_names: tuple[str, ...] = VOC_CLASSES,
        config: Config | None = None,
        step: int = 3,
        channels: int = 3,
        label_maps: tuple[str, ...] = ("",),
    ) -> Predictor:
        config = config or voc_config()
        counts = dict.fromkeys(label_maps, len(class_names))
        model = randomised(
            lambda: build_model(config.model, counts, channels=channels, rngs=nnx.Rngs(0))
        )
        network = PureModel(model)
        by_map = dict.fromkeys(label_maps, class_names)
        provenance = Provenance(config, by_map, channels, step=step)
        return Predictor(network, network.variables, provenance)

    return make


def known_label(image: np.ndarray) -> np.ndarray:
    """Returns a class that depends on the green of each pixel."""
    return image[..., 1] % 21


def send(
    predictor: Predictor, voc: Path, output: Path, predict=known_label, **options: str
) -> None:
    choices = {"split": "test", "competition": "comp6", "method": "known", **options}
    submit(predictor, voc, output, predict=predict, **choices)


def expected_label(voc: Path, name: str) -> np.ndarray:
    with Image.open(voc / "JPEGImages" / f"{name}.jpg") as image:
        return np.asarray(image)[..., 1] % 21


def read_png(data: bytes) -> tuple[np.ndarray, bytes]:
    """Indices and palette of an 8-bit indexed PNG without filters, by the PNG specification."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, offset = [], 8
    while offset < len(data):
        length, kind = struct.unpack(">I4s", data[offset : offset + 8])
        chunks.append((kind, data[offset + 8 : offset + 8 + length]))
        offset += 12 + length
    assert [kind for kind, _ in chunks] == [b"IHDR", b"PLTE", b"IDAT", b"IEND"]
    width, height, bits, colour_type, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[0][1])
    assert (bits, colour_type, interlaced) == (8, 3, 0)
    rows = np.frombuffer(zlib.decompress(chunks[2][1]), np.uint8).reshape(height, 1 + width)
    assert not rows[:, 0].any()
    return rows[:, 1:], chunks[1][1]


def header_of_png(width: int, height: int) -> bytes:
    """The beginning of a PNG in 8 bits of grey, by the PNG specification."""
    content = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + content + struct.pack(">I", zlib.crc32(content))
    return b"\x89PNG\r\n\x1a\n" + chunk


def members(archive: Path) -> dict[str, bytes]:
    """The files of the archive, in their order."""
    with tarfile.open(archive) as tar:
        return {entry.name: tar.extractfile(entry).read() for entry in tar if entry.isfile()}


def test_the_archive_holds_the_listed_images_in_the_servers_format(make_run, voc, tmp_path, capsys):
    send(make_run(), voc.parents[1], tmp_path / "out")
    held = members(tmp_path / "out" / "results.tgz")
    assert list(held) == [f"{PLACE}/d.png", f"{PLACE}/e.png"]
    for name in "de":
        label, palette = read_png(held[f"{PLACE}/{name}.png"])
        np.testing.assert_array_equal(label, expected_label(voc, name))
        assert label.shape == SIZES[name][::-1]
        assert palette == voc_palette().tobytes()
        assert palette[:12].hex(" ", 3) == "000000 800000 008000 808000"
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2] == "note: test.txt lists 2 images; the server expects 1456"
    assert printed[-1] == (
        f"upload {tmp_path}/out/results.tgz to http://host.robots.ox.ac.uk:8080, VOC2012, "
        "Segmentation, comp6"
    )


def test_a_split_with_masks_is_packed_and_not_sent(make_run, voc, tmp_path, capsys):
    send(make_run(), voc, tmp_path, split="val", competition="comp5")
    place = "results/VOC2012/Segmentation/comp5_val_cls"
    assert list(members(tmp_path / "results.tgz")) == [f"{place}/c.png"]
    (line,) = capsys.readouterr().out.splitlines()
    assert line == f"{tmp_path}/results.tgz: 1 label maps, 0.0 MB, of {place}"


def test_the_same_label_maps_give_the_same_archive(make_run, voc, tmp_path):
    send(make_run(), voc, tmp_path / "first")
    first = (tmp_path / "first" / "results.tgz").read_bytes()
    # With other times, another order of the list, and other permissions.
    (voc / "ImageSets/Segmentation/test.txt").write_text("d\ne\nd\n")
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    for png in (tmp_path / "second" / PLACE).iterdir():
        png.chmod(0o600)
        png.touch()
    send(make_run(), voc, tmp_path / "second")
    assert (tmp_path / "second" / "results.tgz").read_bytes() == first
    assert first[4:8] == b"\0\0\0\0"  # gzip's time
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(first))) as tar:
        entries = tar.getmembers()
    assert [entry.name for entry in entries if entry.isdir()] == [
        "results",
        "results/VOC2012",
        "results/VOC2012/Segmentation",
        PLACE,
    ]
    assert {(entry.mtime, entry.uid, entry.gid, entry.uname) for entry in entries} == {
        (0, 0, 0, "")
    }


def test_an_interrupted_start_is_resumed(make_run, voc, tmp_path):
    send(make_run(), voc, tmp_path / "whole")

    def until_interrupted(image: np.ndarray) -> np.ndarray:
        if image.shape[1] == SIZES["d"][0]:
            raise KeyboardInterrupt
        return known_label(image)

    output = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        send(make_run(), voc, output, until_interrupted)
    assert [png.name for png in (output / PLACE).iterdir()] == ["e.png"]
    assert not (output / "results.tgz").exists()
    (output / PLACE / ".d.png.17.unfinished").write_bytes(b"of a start that was killed")
    labelled = []

    def counted(image: np.ndarray) -> np.ndarray:
        labelled.append(image.shape[1])
        return known_label(image)

    send(make_run(), voc, output, counted)
    assert labelled == [SIZES["d"][0]]
    whole = (tmp_path / "whole" / "results.tgz").read_bytes()
    assert (output / "results.tgz").read_bytes() == whole
    assert sorted(png.name for png in (output / PLACE).iterdir()) == ["d.png", "e.png"]


@pytest.mark.parametrize("damage", ["truncated", "size", "value", "grey", "colours", "ending"])
def test_a_label_map_that_is_not_whole_is_made_anew(make_run, voc, tmp_path, damage):
    send(make_run(), voc, tmp_path)
    png = tmp_path / PLACE / "e.png"
    whole = png.read_bytes()
    label = expected_label(voc, "e")
    if damage == "truncated":
        png.write_bytes(whole[: len(whole) // 2])
    elif damage == "size":
        overlays.save_label_map(png, label.T.copy())
    elif damage == "value":
        label[3, 4] = 255
        overlays.save_label_map(png, label)
    elif damage == "grey":
        Image.fromarray(label).save(png)
    elif damage == "colours":
        overlays.save_label_map(png, label, voc_palette()[::-1])
    else:
        png.write_bytes(whole[:-12])
    send(make_run(), voc, tmp_path)
    assert png.read_bytes() == whole


def test_label_maps_of_another_network_are_not_mixed_in(make_run, voc, tmp_path):
    output = tmp_path / "out"
    send(make_run(), voc, output)
    archive = (output / "results.tgz").read_bytes()
    with pytest.raises(UserError, match=r"of step 3 \(known\), not of this network at step 4"):
        send(make_run(step=4), voc, output)
    with pytest.raises(UserError, match=r"of step 3 \(known\), not .* step 3 \(in tiles\)"):
        send(make_run(), voc, output, method="in tiles")
    other = make_run()
    params, batch_stats = other.variables
    params["head"]["score32"]["bias"] = params["head"]["score32"]["bias"] + 1
    other.variables = params, batch_stats
    with pytest.raises(UserError, match="not of this network at step 3"):
        send(other, voc, output)
    assert (output / "results.tgz").read_bytes() == archive
    submission = (output / "submission.json").read_text()
    (output / "submission.json").write_text("{")
    with pytest.raises(UserError, match="holds label maps of an unknown network"):
        send(make_run(), voc, output)
    (output / "submission.json").write_text(submission)
    shutil.rmtree(output / "results")
    send(make_run(step=4), voc, output)
    assert (output / "results.tgz").read_bytes() == archive


def test_files_that_are_not_of_a_submission_are_not_replaced(make_run, voc, tmp_path):
    for name, content in {"results.tgz": b"mine", "submission.json": b'{"my": 1}'}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name} exists and is not of a submission"):
            send(make_run(), voc, tmp_path)
        assert (tmp_path / name).read_bytes() == content
        (tmp_path / name).unlink()


@pytest.mark.parametrize("name", ["{top}/mine/pic", "../../../mine/pic", "..", "a/b"])
def test_a_listed_name_that_is_a_path_is_refused(make_run, voc, tmp_path, name):
    (tmp_path / "mine").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "mine/pic.jpg")
    (voc / "ImageSets/Segmentation/test.txt").write_text(f"d\n{name.format(top=tmp_path)}\n")
    with pytest.raises(UserError, match=r"test\.txt: '.*' (is not the name of an|leads out of)"):
        send(make_run(), voc, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["pic.jpg"]


def test_the_network_must_have_vocs_classes(make_run, voc, tmp_path):
    swapped = ("background", "bicycle", "aeroplane", *VOC_CLASSES[3:])
    for options, message in (
        (
            {"class_names": swapped},
            "has 21 classes, of which 1 is bicycle, 2 is aeroplane; it must have VOC's 21, in",
        ),
        ({"class_names": VOC_CLASSES[:20]}, "has 20 classes; it must have VOC's 21"),
        ({"label_maps": ("things", "parts")}, "has 3 channels and 2 label maps"),
        ({"channels": 4}, "has 4 channels and 1 label maps"),
    ):
        with pytest.raises(UserError, match=message):
            send(make_run(**options), voc, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_comp5_is_for_vocs_own_data_alone(make_run, voc, tmp_path, monkeypatch):
    def stage(folder: str, init: str | None) -> None:
        create_or_check(Path(folder), Provenance(voc_config(init), {"": VOC_CLASSES}), num_images=1)

    monkeypatch.chdir(tmp_path)
    stage("scratch", None)
    stage("pretrained", "squeezenet.npz")
    send(make_run(config=voc_config("scratch")), voc, tmp_path / "out", competition="comp5")
    enlarged = voc_config()
    enlarged.data.name = "voc/trainaug"
    for config, reason in (
        (voc_config("squeezenet.npz"), "init is squeezenet.npz"),
        (
            voc_config("scratch,pretrained"),
            "init is pretrained, whose init is squeezenet.npz",
        ),
        (enlarged, "data.name is voc/trainaug"),
    ):
        with pytest.raises(UserError, match=f"must be comp6.*{reason}"):
            send(make_run(config=config), voc, tmp_path / "refused", competition="comp5")
        send(make_run(config=config), voc, tmp_path / str(config.init), split="val")


def test_missing_files_are_named_before_anything_is_written(make_run, voc, tmp_path):
    run, output = make_run(), tmp_path / "out"
    for name in ("JPEGImages/d.jpg", "JPEGImages/e.jpg"):
        (voc / name).rename(tmp_path / Path(name).name)
    missing = r"2 of the 2 images of .*test\.txt are missing in .*JPEGImages \(e\.jpg, d\.jpg\)"
    with pytest.raises(UserError, match=rf"{missing}.* VOC2012test\.tar \(http"):
        send(run, voc, output)
    shutil.move(tmp_path / "d.jpg", voc / "JPEGImages")
    (voc / "JPEGImages/e.jpg").write_text("no image")
    with pytest.raises(UserError, match=r"e\.jpg: no image, damaged, or far too large"):
        send(run, voc, output)
    (voc / "JPEGImages/e.jpg").write_bytes(header_of_png(60_000, 60_000))
    with pytest.raises(UserError, match=r"e\.jpg: no image, damaged, or far too large"):
        send(run, voc, output)
    test = voc / "ImageSets/Segmentation/test.txt"
    test.write_text("\n")
    with pytest.raises(UserError, match=r"test\.txt: lists no image"):
        send(run, voc, output)
    for name in ("/mine/photo", "../photo"):
        test.write_text(f"{name}\n")
        with pytest.raises(UserError, match=rf"test\.txt: '{name}' leads out of the folder"):
            send(run, voc, output)
    test.unlink()
    with pytest.raises(UserError, match=r"missing \(lists there: train, val\).*the split val"):
        send(run, voc, output)
    with pytest.raises(UserError, match=r"gone holds no VOCdevkit/VOC2012"):
        send(run, tmp_path / "gone", output)
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "VOCtrainval_11-May-2012.tar").touch()
    with pytest.raises(UserError, match=r"packed holds no VOCdevkit.*unpack"):
        send(run, tmp_path / "packed", output)
    assert not output.exists()


def test_a_damaged_image_leaves_the_others_labelled(make_run, voc, tmp_path):
    image = voc / "JPEGImages/e.jpg"
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"^1 of 2 images cannot be read.*e\.jpg: the image is dam"):
        send(make_run(), voc, tmp_path)
    assert [png.name for png in (tmp_path / PLACE).iterdir()] == ["d.png"]
    assert not (tmp_path / "results.tgz").exists()
    image.write_bytes(whole)
    send(make_run(), voc, tmp_path)
    assert len(members(tmp_path / "results.tgz")) == 2


def test_label_maps_that_the_server_would_refuse_are_not_packed(make_run, voc, tmp_path):
    def with_void(image: np.ndarray) -> np.ndarray:
        label = known_label(image)
        label[0, 0] = 255
        return label

    for label, flaw in (
        (with_void, r"e\.png: class 255, but VOC's last is 20"),
        (lambda image: known_label(image)[:, 1:].copy(), r"e\.png: 32 × 65 pixels, .* has 33 × 65"),
    ):
        with pytest.raises(UserError, match=rf"2 of 2 label maps are not .*{flaw}"):
            send(make_run(), voc, tmp_path, label)
        assert not (tmp_path / "results.tgz").exists()


def test_other_files_among_the_label_maps_are_named(make_run, voc, tmp_path):
    send(make_run(), voc, tmp_path)
    (tmp_path / PLACE / "f.png").touch()
    with pytest.raises(UserError, match=r"holds 1 files that test.txt does not list \(f\.png\)"):
        send(make_run(), voc, tmp_path)


def test_a_full_disk_is_reported(make_run, voc, tmp_path, monkeypatch):
    nearly_full = shutil.disk_usage(tmp_path)._replace(free=600)
    # (70 · 40 + 33 · 65) pixels / 8 = 618 bytes.
    with monkeypatch.context() as patched:
        patched.setattr(voc_server.shutil, "disk_usage", lambda _: nearly_full)
        with pytest.raises(UserError, match=r"0\.0 MB are free there"):
            send(make_run(), voc, tmp_path / "out")
        patched.setattr(voc_server.shutil, "disk_usage", lambda _: nearly_full._replace(free=618))
        send(make_run(), voc, tmp_path / "out")

    def no_room(*_: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", no_room)
    message = r"^cannot write .*/e\.png \(No space left on device\); the other label maps are kept"
    with pytest.raises(UserError, match=message):
        send(make_run(), voc, tmp_path / "full")


def test_the_command_packs_the_networks_label_maps(make_run, voc, tmp_path):
    run = make_run()
    export(run, tmp_path / "network", {})
    arguments = [f"--workdir={tmp_path}/network", f"--output={tmp_path}/out"]
    done = run_command("predict", *arguments, f"--voc-submission={voc}", "--split", "test")
    assert done.returncode == 0, done.stderr
    held = members(tmp_path / "out" / "results.tgz")
    for name in "de":
        with Image.open(voc / "JPEGImages" / f"{name}.jpg") as image:
            expected = run(np.asarray(image))
        assert len(np.unique(expected)) > 3
        label, _ = read_png(held[f"{PLACE}/{name}.png"])
        np.testing.assert_array_equal(label, expected)


def test_a_submission_takes_no_other_images(monkeypatch):
    given = SimpleNamespace(workdir="run", output="out", voc_submission="VOC", overlay=False)
    monkeypatch.setattr(flags, "FLAGS", given)
    with pytest.raises(UserError, match="give no PATH, no --overlay"):
        predict.main(["photo.jpg"])
    given.overlay = True
    with pytest.raises(UserError, match="give no PATH, no --overlay"):
        predict.main([])


@pytest.mark.parametrize("option", ["--split=val", "--competition=comp5"])
def test_flags_of_submissions_need_a_submission(monkeypatch, option):
    own = flags.FlagValues()
    for name in ("workdir", "output", "voc_submission", "split", "competition"):
        flags.DEFINE_string(name, None, "", flag_values=own)
    own(["predict", "--workdir=run", "--output=out", option])
    monkeypatch.setattr(flags, "FLAGS", own)
    with pytest.raises(UserError, match=rf"^{option.partition('=')[0]} needs --voc_submission"):
        predict.main(["photo.jpg"])
