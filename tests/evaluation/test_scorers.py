"""Scoring in batches: when the host fetches results, and how many images it holds."""

import time
import weakref
from collections.abc import Callable, Generator
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax.config import EvalConfig
from fcn_jax.data.pipeline import EVALUATION_THREADS
from fcn_jax.errors import ArgumentError, UserError
from fcn_jax.evaluation import conventions, evaluator, scorers
from fcn_jax.evaluation.conventions import EvaluationSplit
from fcn_jax.evaluation.eval_step import make_eval_step
from fcn_jax.evaluation.scorers import BatchScorer, ScoredImages
from fcn_jax.parallel import data_parallel, hosts
from fcn_jax.parallel.data_parallel import DATA_AXIS
from tests.parallel import test_data_parallel

IMAGES = 101
BATCH = 2
CONFUSION = {"": np.zeros((2, 2), np.int32)}


class Watched:
    """Records of 4×4 pixels of class 1; counts the images that are still referenced."""

    def __init__(self) -> None:
        self._given: list[weakref.ref[np.ndarray]] = []

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = np.zeros((4, 4, 3), np.uint8)
        self._given.append(weakref.ref(image))
        return {"image": image, "label": np.ones((4, 4), np.uint8), "name": str(index)}

    @property
    def held(self) -> int:
        return sum(image() is not None for image in self._given)


@pytest.fixture
def score_by(monkeypatch) -> Callable[..., Any]:
    """Scores watched records with a given step; a single label map with two classes."""

    def score(records: Watched, step: Callable[..., Any], wanted: set[int]) -> list[ScoredImages]:
        monkeypatch.setattr(data_parallel, "parallelize", lambda *_, **__: step)
        split = EvaluationSplit(records, np.full((IMAGES, 2), 4), conventions.NATIVE)
        settings = EvalConfig(batch_size=BATCH, canvases=1)
        network: Any = None  # the step replaces it
        return list(BatchScorer(network, {"": 2}, split, settings, wanted)({}))

    return score


class Result:
    """An array that calls a function when the host fetches it."""

    def __init__(self, when_read: Callable[[], None]) -> None:
        self._when_read = when_read

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        self._when_read()
        return np.zeros((BATCH, 2), np.int32)


def test_a_batch_is_dispatched_before_the_previous_one_is_fetched(score_by):
    events: list[str] = []

    def step(_, batch, variables):
        number = sum(event.startswith("dispatch") for event in events)
        events.append(f"dispatch {number}")
        hits = Result(lambda: events.append(f"fetch {number}"))
        return CONFUSION, {"": (hits, np.zeros((BATCH, 2)), np.zeros((BATCH, 2)))}, {}

    score_by(Watched(), step, wanted=set())
    batches = -(-IMAGES // BATCH)
    expected = ["dispatch 0"]
    for number in range(1, batches):
        expected += [f"dispatch {number}", f"fetch {number - 1}"]
    assert events == [*expected, f"fetch {batches - 1}"]


def test_only_images_read_ahead_and_wanted_are_held(score_by):
    held: list[int] = []
    records = Watched()

    def step(_, batch, variables):
        held.append(records.held)
        labels = jnp.asarray(batch["label"])
        return CONFUSION, {"": (np.zeros((BATCH, 2)),) * 3}, {"": labels}

    wanted = {0, 57, IMAGES - 1}
    received = score_by(records, step, wanted)
    # Images that the threads read, have read ahead, and of the current batch; the first for shapes.
    ahead = EVALUATION_THREADS + max(EVALUATION_THREADS, 2 * BATCH) + BATCH + 1
    assert 2 * ahead < IMAGES
    assert max(held) <= ahead + len(wanted)
    assert [index for scored in received for index in scored.indices] == list(range(IMAGES))
    predicted = {index: pair for scored in received for index, pair in scored.predictions.items()}
    assert predicted.keys() == wanted
    for index, (record, labels) in predicted.items():
        assert record["name"] == str(index)
        np.testing.assert_array_equal(labels[""][:4, :4], record["label"])


def test_images_read_ahead_are_released_if_scoring_fails(score_by):
    records = Watched()

    def step(_, batch, variables):
        raise UserError("the device is lost")

    with pytest.raises(UserError, match="the device is lost") as raised:
        score_by(records, step, wanted=set())
    deadline = time.monotonic() + 60
    # The traceback refers to the current batch. Threads finish the images that they read.
    while records.held > BATCH:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert raised.tb is not None


def test_several_hosts_read_names_once(monkeypatch):
    asked: list[int] = []

    class Named(Watched):
        def record_name(self, index: int) -> str:
            asked.append(index)
            return f"image {index}"

    class Split:
        label_maps = {"": ("ground", "disc")}  # noqa: RUF012
        num_classes = {"": 2}  # noqa: RUF012
        colours = ()

        def split(self, name: str) -> Named:
            return Named()

        def statistics(self, name: str) -> Any:
            return SimpleNamespace(sizes=np.full((IMAGES, 2), 4))

    class NoImages:
        canvases, empty_share, is_partial = (), 0.0, False

        def __init__(self, *arguments: Any) -> None: ...

        def __call__(self, variables: Any) -> Generator[ScoredImages]:
            yield from ()

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(hosts, "gather_arrays", lambda arrays: [arrays, arrays])
    monkeypatch.setattr(evaluator, "BatchScorer", NoImages)
    network: Any = None
    dataset: Any = Split()
    evaluate = evaluator.Evaluator(network, dataset, "val", EvalConfig())
    for _ in range(2):
        assert evaluate({}).names == tuple(f"image {index}" for index in range(IMAGES))
    assert asked == list(range(IMAGES))


def test_the_only_full_size_results_of_a_step_are_classes_in_a_byte():
    maps = test_data_parallel.TWO_MAPS
    network = test_data_parallel.network(normalised=False, label_maps=maps)
    batch = test_data_parallel.batch(maps)
    images, height, width, _ = batch["image"].shape
    step = jax.vmap(
        make_eval_step(network, maps),
        in_axes=(None, 0, None),
        out_axes=(None, None, 0),
        axis_name=DATA_AXIS,
    )
    shares = jax.tree.map(lambda values: values.reshape(2, images // 2, *values.shape[1:]), batch)
    confusions, counts, predictions = jax.eval_shape(step, (), shares, network.variables)
    for name, k in maps.items():
        assert (confusions[name].shape, confusions[name].dtype) == ((k, k), np.int32)
        assert [(each.shape, each.dtype) for each in counts[name]] == [((images, k), np.int32)] * 3
        assert predictions[name].shape == (2, images // 2, height, width)
        assert predictions[name].dtype == np.uint8


@pytest.mark.parametrize(
    ("backend", "devices", "wanted", "images", "batch_size"),
    [
        ("cpu", 1, 0, 445, 1),
        ("cpu", 4, 0, 445, 4),
        ("gpu", 1, 0, 445, 8),
        ("gpu", 4, 0, 445, 32),
        ("gpu", 4, 0, 10, 12),
        ("cpu", 1, 16, 445, 16),
    ],
)
def test_the_batch_size(monkeypatch, backend, devices, wanted, images, batch_size):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    assert scorers.batch_size(EvalConfig(batch_size=wanted), images) == batch_size
    if devices > 1:
        with pytest.raises(ArgumentError, match=r"eval.batch_size \(=3\) does not divide"):
            scorers.batch_size(EvalConfig(batch_size=3), images)
