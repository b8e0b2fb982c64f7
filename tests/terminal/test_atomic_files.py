import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from fcn_jax.errors import UserError
from fcn_jax.terminal.atomic_files import write_whole


def test_a_file_is_there_when_it_is_whole_and_in_a_folder_that_was_not(tmp_path):
    path = tmp_path / "new" / "folder" / "a.txt"

    def write(part: Path) -> None:
        part.write_text("half")
        assert not path.exists()
        part.write_text("whole")

    write_whole(path, write)
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("full")])
def test_what_cannot_be_written_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(part: Path) -> None:
        part.write_text("half")
        raise error

    with pytest.raises(UserError, match=r"^cannot write .*a\.txt \((No space left .*|full)\)$"):
        write_whole(path, write)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_without_words_is_named(tmp_path):
    def write(part: Path) -> None:
        raise RuntimeError

    with pytest.raises(UserError, match=r"\(RuntimeError\)$"):
        write_whole(tmp_path / "a", write)


def test_an_interruption_leaves_nothing(tmp_path):
    def write(part: Path) -> None:
        part.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "a", write)
    assert list(tmp_path.iterdir()) == []


def test_two_processes_do_not_write_to_one_unfinished_file(tmp_path):
    """Nor do two with the same number on different hosts, as here."""
    path = tmp_path / "a.txt"

    def write(part: Path) -> None:
        part.write_text("first")
        write_whole(path, lambda part: part.write_text("second"))
        assert path.read_text() == "second"
        assert part.read_text() == "first"

    write_whole(path, write)
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_others_may_read_what_they_may_read_of_other_files(tmp_path, mask, mode):
    """Safetensors alone would write for the owner only."""
    before = os.umask(mask)
    try:
        write_whole(tmp_path / "a", lambda part: save_file({"x": np.zeros(2)}, part))
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == mode


def test_a_folder_that_is_none(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^cannot write .*a\.txt \((Not a dir.*|File exists)\)$"):
        write_whole(tmp_path / "file" / "a.txt", Path.touch)
