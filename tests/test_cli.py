"""What the commands share."""

import pytest
from absl import flags

from fcn_jax import cli
from tests.own_folder import command


@pytest.fixture
def own_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    own = flags.FlagValues()
    flags.DEFINE_string("data_root", None, "", flag_values=own)
    flags.DEFINE_bool("keep_all", False, "", flag_values=own)
    monkeypatch.setattr(flags, "FLAGS", own)


@pytest.mark.parametrize(
    ("given", "understood"),
    [
        ("--data-root=my-data/a-b=c", "--data_root=my-data/a-b=c"),
        ("--data_root=--data-root", "--data_root=--data-root"),
        ("-data-root my-data", "-data_root my-data"),
        ("--keep-all --nokeep-all", "--keep_all --nokeep_all"),
        ("--config.data.eval-split=val-2", "--config.data.eval_split=val-2"),
        ("--data-rot=x", "--data-rot=x"),
        ("data-root -1e-3 - --1-2 ---data-root", "data-root -1e-3 - --1-2 ---data-root"),
        ("--keep-all -- --data-root --", "--keep_all -- --data-root --"),
    ],
)
def test_hyphens_in_the_names_of_flags_are_underscores(own_flags, given, understood):
    assert cli.with_underscores(given.split(" ")) == understood.split(" ")


def test_help_shows_flags_with_underscores():
    shown = command("evaluate", "--data-root=x", "--help")
    assert "\n  --data_root: where its raw files are (default: where they were)\n" in shown.stdout


def test_a_setting_takes_hyphens():
    refused = command("train", "--config.train.batch-size=0", "--workdir=x-y")
    assert "config.train.batch_size (=0) must be above 0" in refused.stderr
