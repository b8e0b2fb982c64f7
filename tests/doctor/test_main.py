"""The doctor's command: its report, its picture and its exit status."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from fcn_jax.doctor import __main__
from fcn_jax.errors import UserError
from fcn_jax.pictures import contact_sheet
from tests.doctor.example_set import FIRST, as_jpeg, binary, edit_mask, examine, faults, settings
from tests.own_folder import command


def test_unusable_list_of_classes(mine, tmp_path, capsys):
    (mine / "classes.txt").unlink()
    assert faults(mine) == {"classes": (f"{mine}/classes.txt: missing",)}  # the remedy only once
    with pytest.raises(UserError, match=r"^1 fault in "):
        __main__.diagnose(settings(mine), tmp_path / "sheet.png")
    assert "class 5" in capsys.readouterr().out  # the table of shares is printed nevertheless


def test_all_faults_are_reported_in_one_run(mine, tmp_path, capsys):
    (mine / FIRST).unlink()
    edit_mask(mine, as_jpeg, "masks/train_001.png")
    edit_mask(mine, lambda label: label[:50], "masks/train_002.png")
    before = {path: path.stat().st_mtime_ns for path in mine.rglob("*")}
    findings = examine(mine)
    assert set(findings) == {"image_without_mask", "mask_was_jpeg", "mask_size"}
    with pytest.raises(UserError, match=r"^3 faults in "):
        __main__.diagnose(settings(mine), tmp_path / "pictures" / "sheet.png")
    printed = " ".join(capsys.readouterr().out.split())
    for finding in findings.values():
        assert f"✗ {finding.title} (1) {finding.places[0]} → {finding.remedy}" in printed
    assert {path: path.stat().st_mtime_ns for path in mine.rglob("*")} == before
    with Image.open(tmp_path / "pictures" / "sheet.png") as sheet:
        assert sheet.width == 1400


def test_the_picture_shows_each_kind_of_fault(mine, tmp_path, monkeypatch):
    """Faults of single files, of the listing and of the whole set are drawn."""
    (mine / FIRST).unlink()
    (mine / "masks" / "train_001.png").write_bytes(b"")
    (mine / "images" / "train_004.png").write_bytes(b"")
    shutil.copy(mine / "images" / "train_002.png", mine / "images" / "val_000.png")
    with Image.open(mine / "masks" / "train_002.png") as mask:
        mask.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(mine / "masks" / "val_000.png")
    for name in ("train_006", "train_007"):
        edit_mask(mine, binary, f"masks/{name}.png")
    entries: list[contact_sheet.Entry] = []
    monkeypatch.setattr(contact_sheet, "draw", entries.extend)
    with pytest.raises(UserError, match=r"^7 faults in "):
        __main__.diagnose(settings(mine), tmp_path / "sheet.png")
    duplicates = "images in two splits; duplicate images with different masks"
    alone = "masks of 0 and 255 only, in a set whose other masks contain classes"
    faulty = {entry.caption: entry for entry in entries if entry.is_faulty}
    assert sorted(faulty) == [
        "train_000: images without a mask",
        "train_001: unreadable masks",
        f"train_002: {duplicates}",
        "train_004: unreadable images",
        f"train_006: {alone}",
        f"train_007: {alone}",
        f"val_000: {duplicates}",
    ]
    assert faulty["train_000: images without a mask"].mask == "missing"
    assert faulty["train_001: unreadable masks"].mask == "unreadable"
    assert faulty["train_004: unreadable images"].image == "unreadable"
    assert not any(isinstance(entry.mask, str) for entry in entries if not entry.is_faulty)


def test_unwritable_output_is_refused_before_the_data_set_is_opened(tmp_path):
    config = settings(tmp_path / "none")
    with pytest.raises(UserError, match=r"--output \(=.*sheet\.pdf\) must end in one of \.png, "):
        __main__.diagnose(config, tmp_path / "sheet.pdf")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^cannot write .*a/sheet\.png \(Not a directory\); give"):
        __main__.diagnose(config, tmp_path / "file" / "a" / "sheet.png")
    (tmp_path / "sheet.png").mkdir()
    with pytest.raises(UserError, match=r"^cannot write .*sheet\.png \(Is a directory\); give"):
        __main__.diagnose(config, tmp_path / "sheet.png")
    __main__.check_output(tmp_path / "new" / "folder" / "sheet.JPG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "sheet.png"]


@pytest.mark.parametrize("name", ["images/train_000.png", "notes.jpg", "link.png"])
def test_files_that_the_doctor_did_not_draw_are_not_overwritten(mine, name):
    (mine / "notes.jpg").write_text("not a picture")
    (mine / "link.png").symlink_to(mine / "images" / "train_001.png")
    before = (mine / name).read_bytes()
    with pytest.raises(UserError, match=r"exists and is not a picture that the doctor drew; remov"):
        __main__.diagnose(settings(mine), mine / name)
    assert (mine / name).read_bytes() == before


def test_named_pipes_are_not_opened(mine):
    """Opening one would wait for a writer, during which SIGTERM has no effect."""
    for name in ("images/train_001.png", "masks/train_000.png"):
        (mine / name).unlink()
        os.mkfifo(mine / name)
    assert faults(mine) == {
        "image_unreadable": ("images/train_001.png (not a regular file)",),
        "mask_unreadable": (f"{FIRST} (not a regular file)",),
    }
    with pytest.raises(UserError, match="exists and is not a picture"):
        __main__.diagnose(settings(mine), mine / FIRST)


@pytest.mark.parametrize("ending", [".png", ".jpg", ".tiff"])
def test_the_doctors_own_pictures_are_overwritten(tmp_path, ending):
    path = tmp_path / f"sheet{ending}"
    for grey in (10, 200):
        __main__.check_output(path)
        __main__.save_picture(Image.new("RGB", (8, 8), (grey, grey, grey)), path)
    with Image.open(path) as picture:
        assert np.asarray(picture).min() > 190


@pytest.mark.parametrize("is_faulty", [True, False])
def test_full_disk_at_the_end(mine, tmp_path, monkeypatch, capsys, is_faulty):
    """The findings are reported and counted; the status is 1 even without a fault."""

    def full(path: Path, write: Callable) -> None:
        raise UserError(f"cannot write {path} (No space left on device)")

    monkeypatch.setattr(__main__, "write_whole", full)
    if is_faulty:
        edit_mask(mine, as_jpeg)
    output = tmp_path / "sheet.png"
    options = SimpleNamespace(config=settings(mine), output=str(output), augmented=False)
    monkeypatch.setattr(__main__.flags, "FLAGS", options)
    counted = f"; 1 fault in {mine}" if is_faulty else ""
    with pytest.raises(UserError) as raised:
        __main__.main([])
    assert str(raised.value) == f"cannot write {output} (No space left on device){counted}"
    assert ("no faults" in capsys.readouterr().out) == (not is_faulty)


def test_names_are_printed_in_one_line(mine, tmp_path, capsys):
    """A file name cannot forge lines of the report or control the terminal."""
    (mine / "images" / "x\nno faults\x1b[2J.heic").write_text("")
    __main__.diagnose(settings(mine), tmp_path / "sheet.png")
    printed = capsys.readouterr().out
    assert r"images/x\nno faults\x1b[2J.heic" in printed
    assert printed.count("\nno faults") == 1


def test_command(mine, tmp_path):
    sheet = tmp_path / "sheet.png"
    arguments = ["--config.data.name=folder", f"--config.data.root={mine}", f"--output={sheet}"]
    clean = command("doctor", *arguments)
    assert (clean.returncode, clean.stdout.splitlines()[-1]) == (0, "no faults")
    assert clean.stdout.splitlines()[0] == f"data set: folder in {mine}"
    assert "--config.loss.class_weights=balanced" in clean.stdout
    assert sheet.is_file()
    edit_mask(mine, as_jpeg)
    faulty = command("doctor", *arguments)
    assert faulty.returncode == 1
    assert faulty.stderr.splitlines()[-1] == f"doctor: 1 fault in {mine}"
    assert FIRST in faulty.stdout
