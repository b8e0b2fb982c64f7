"""A data set without a fault, into which the tests of the doctor put faults."""

import shutil
from pathlib import Path

import pytest

from tests.doctor.example_set import TRAIN, VAL
from tests.own_folder import write_folder


@pytest.fixture(scope="session")
def faultless_set(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("faultless") / "mine"
    write_folder(root, TRAIN + VAL)
    (root / "train.txt").write_text("\n".join(TRAIN))
    (root / "val.txt").write_text("\n".join(VAL))
    return root


@pytest.fixture
def mine(faultless_set, tmp_path) -> Path:
    """A copy of the faultless set that a test may change."""
    return Path(shutil.copytree(faultless_set, tmp_path / "mine"))
