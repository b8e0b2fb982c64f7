"""Shards of a split are scored alone, and their sum is the score of the whole split."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from fcn_jax.config import EvalConfig
from fcn_jax.data.shard import Shard
from fcn_jax.errors import UserError
from fcn_jax.evaluation import conventions, shards
from fcn_jax.evaluation.evaluator import WORST_SHOWN, Evaluation, Evaluator
from fcn_jax.evaluation.shards import EvaluatedShard, find_shards, merge
from fcn_jax.inference.options import WHOLE, Inference
from fcn_jax.models.pure_model import PureModel
from tests.evaluation.test_evaluator import SIZES, Drawn, random_network
from tests.in_process import run_command

INPUTS = {"weights": "abc", "step": 3}


@pytest.fixture(scope="module")
def network() -> PureModel:
    return random_network()


def evaluate(
    network: PureModel, shard: Shard | None, inference: Inference = WHOLE, *, boundary: bool = False
) -> Evaluation:
    score = Evaluator(
        network,
        Drawn(),  # type: ignore[arg-type]
        "val",
        EvalConfig(batch_size=2, canvases=3),
        conventions.NATIVE,
        inference,
        boundary=boundary,
        shard=shard,
        temperatures={"": 1.5},
    )
    return score(network.variables, examples=True)


def in_files(
    network: PureModel, folder: Path, count: int, **settings
) -> dict[Path, EvaluatedShard]:
    """Scores all shards, and reads them from files again."""
    read = {}
    for index in range(count):
        shard = Shard(index, count)
        path = folder / f"val_{shard.tag}.npz"
        EvaluatedShard(shard, INPUTS, evaluate(network, shard, **settings)).save(path)
        read[path] = EvaluatedShard.load(path)
    return read


@pytest.fixture(scope="module")
def four(
    network: PureModel, tmp_path_factory: pytest.TempPathFactory
) -> dict[Path, EvaluatedShard]:
    return in_files(network, tmp_path_factory.mktemp("four"), 4, boundary=True)


def assert_equal(a: Evaluation, b: Evaluation) -> None:
    for name in ("names", "image_count", "canvases", "empty_share", "convention", "inference"):
        assert getattr(a, name) == getattr(b, name)
    for one, other in zip(a.by_map.values(), b.by_map.values(), strict=True):
        assert (one.class_names, one.mean_over) == (other.class_names, other.mean_over)
        assert one.colours
        assert tuple(one.colours) == tuple(other.colours)
        assert one.counts.names == other.counts.names
        for name in ("hits", "truth", "predicted"):
            np.testing.assert_array_equal(getattr(one.counts, name), getattr(other.counts, name))
        np.testing.assert_array_equal(one.confusion, other.confusion)
        np.testing.assert_array_equal(one.boundary, other.boundary)
        assert one.calibration is not None
        assert other.calibration is not None
        assert one.calibration.temperature == other.calibration.temperature == 1.5
        np.testing.assert_array_equal(one.calibration.counts, other.calibration.counts)
        assert len(one.worst) == WORST_SHOWN
        rows = zip((*one.sheet_rows, *one.worst), (*other.sheet_rows, *other.worst), strict=True)
        for row, same in rows:
            assert row[3] == same[3]
            for picture, also in zip(row[:3], same[:3], strict=True):
                np.testing.assert_array_equal(picture, also)


def test_shards_add_up_to_the_whole(network: PureModel, four: dict[Path, EvaluatedShard]) -> None:
    whole = evaluate(network, None, boundary=True)
    assert [len(one.evaluation.names) for one in four.values()] == [4, 3, 3, 3]
    assert_equal(merge(four), whole)
    assert_equal(merge(dict(reversed(four.items()))), whole)


def test_more_shards_than_images_and_other_views_add_up(network: PureModel, tmp_path: Path) -> None:
    flip = Inference(flip=True)
    many = in_files(network, tmp_path, len(SIZES) + 2, inference=flip)
    assert_equal(merge(many), evaluate(network, None, flip))


def test_what_does_not_add_up_is_named(four: dict[Path, EvaluatedShard]) -> None:
    (path, one), (other_path, other), *rest = four.items()
    with pytest.raises(UserError, match=r"0_of_4.npz is one of 4 shards; missing: 2/4, 3/4 \("):
        merge({path: one, other_path: other})
    with pytest.raises(UserError, match=r"0_of_4.npz and copy are the same shard: give one"):
        merge({**four, Path("copy"): one})
    with pytest.raises(UserError, match="one of 4 shards, other one of 5: remove"):
        merge({path: one, Path("other"): dataclasses.replace(other, shard=Shard(1, 5))})

    def refused(changed: EvaluatedShard) -> str:
        with pytest.raises(UserError) as error:
            merge({path: one, other_path: changed, **dict(rest)})
        return str(error.value)

    step = refused(dataclasses.replace(other, inputs={**INPUTS, "step": 6}))
    assert "scored differently (step 3 and 6): evaluate their shards again" in step
    evaluation = dataclasses.replace(other.evaluation, convention=conventions.PAPER)
    assert "(convention native and paper)" in refused(
        dataclasses.replace(other, evaluation=evaluation)
    )


def test_shards_of_other_temperatures_do_not_add_up(four: dict[Path, EvaluatedShard]) -> None:
    (path, one), (other_path, other), *rest = four.items()
    scored = other.evaluation.by_map[""]
    assert scored.calibration is not None
    colder = dataclasses.replace(scored.calibration, temperature=1.0)
    by_map = {"": dataclasses.replace(scored, calibration=colder)}
    evaluation = dataclasses.replace(other.evaluation, by_map=by_map)
    changed = dataclasses.replace(other, evaluation=evaluation)
    with pytest.raises(UserError, match=r"temperature \[1.5\] and \[1.0\]"):
        merge({path: one, other_path: changed, **dict(rest)})


def test_files_that_cannot_be_read_are_named(
    four: dict[Path, EvaluatedShard], tmp_path: Path
) -> None:
    content = next(iter(four)).read_bytes()
    path = tmp_path / shards.FOLDER / "val_shard_0_of_4.npz"
    path.parent.mkdir()
    for damaged in (content[: len(content) // 2], b"", b"PK"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"val_shard_0_of_4.npz cannot be read \(.*again"):
            EvaluatedShard.load(path)
    assert find_shards([tmp_path]) == {"val": [path]}
    with pytest.raises(UserError, match="elsewhere holds no evaluated shards"):
        find_shards([tmp_path / "elsewhere"])


def test_the_command_merges_what_it_wrote_in_several_folders(
    trained_run: Path, tmp_path: Path
) -> None:
    whole, *parts = (tmp_path / name for name in ("whole", "a", "b"))
    for folder in (whole, *parts):
        shutil.copytree(trained_run, folder, ignore=shutil.ignore_patterns("evaluation"))
    arguments = ["--split=train", "--boundary"]
    assert run_command("evaluate", f"--workdir={whole}", *arguments).returncode == 0
    for index, folder in enumerate([parts[0], parts[1], parts[0]]):
        shard = f"--shard={index}/3"
        ended = run_command("evaluate", f"--workdir={folder}", shard, *arguments)
        assert ended.returncode == 0, ended.stderr
        assert f"step 6 on train, shard {index}/3: {2 - index // 2} of 5 images" in ended.stdout
    alone = run_command("evaluate", "--merge", parts[0])
    assert alone.returncode == 1
    assert "missing: 1/3" in alone.stderr
    assert len(alone.stderr.splitlines()) == 1
    merged = run_command("evaluate", "--merge", *parts)
    assert merged.returncode == 0, merged.stderr
    for name in ("train.json", "train_sheet.png", "train_confusion.png"):
        made = parts[0] / "evaluation" / name
        assert made.read_bytes() == (whole / "evaluation" / name).read_bytes()
    assert json.loads((parts[0] / "evaluation/train.json").read_text())["images"] == 5
    pages = [
        (folder / "evaluation/train_report.html").read_text(encoding="utf-8")
        for folder in (parts[0], whole)
    ]
    shown, expected = (re.findall('(?:<figcaption>|src=")[^<"]+', page) for page in pages)
    assert shown == expected
    assert sum("figcaption" in part for part in shown) == 5
    assert "--config.train.steps=6" in pages[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--merge"], "--merge needs the folders DIR... that hold evaluated shards"),
        (["--merge", "--split=val", "x"], "evaluated shards, and no --split"),
        (["--merge", "x"], "x/evaluation holds no evaluated shards"),
        (["--workdir={run}", "--shard=3/3"], "--shard (=3/3) must be one of 0/3 to 2/3"),
    ],
)
def test_mistakes_are_reported_in_one_line(
    trained_run: Path, flags: list[str], message: str
) -> None:
    ended = run_command("evaluate", *(flag.format(run=trained_run) for flag in flags))
    assert ended.returncode == 1
    assert message in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
