"""One device and four devices give the same numbers.

The number of devices is fixed when JAX starts, so four fake devices need another process. There
this file runs as a program, which trains and prints its results as JSON.
"""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from flax import nnx

from fcn_jax.config import Config
from fcn_jax.errors import ArgumentError
from fcn_jax.evaluation.eval_step import make_eval_step
from fcn_jax.models.backbones.preprocess import TORCHVISION
from fcn_jax.models.fcn import FCN, suffix
from fcn_jax.models.feature_map import FeatureMap
from fcn_jax.models.geometry import Grid
from fcn_jax.models.layers import BatchNorm, Conv, dropout, max_pool, relu
from fcn_jax.models.pure_model import PureModel
from fcn_jax.parallel import data_parallel
from fcn_jax.parallel.data_parallel import DATA_AXIS
from fcn_jax.training import optim
from fcn_jax.training.train_step import create_train_state, make_train_step
from tests.fake_devices import output_on_four_devices

STEPS = 3
CLASSES = 4
ONE_MAP = {"": CLASSES}
TWO_MAPS = {"things": CLASSES, "ground": 3}
BATCH = 8


def settings(accumulation_steps: int = 1) -> Config:
    config = Config()
    config.augment.crop_px = (32, 32)
    config.augment.scale = (0.75, 1.33)
    config.augment.brightness = 0.2
    config.optim.name = "sgd"
    config.optim.learning_rate = 0.05
    config.train.steps = STEPS
    config.train.batch_size = BATCH
    config.train.accumulation_steps = accumulation_steps
    config.check()
    return config


class Pooled(nnx.Module):
    """A backbone of two convolutions, with or without batch normalisation over the devices."""

    def __init__(self, *, normalised: bool) -> None:
        self.preprocessing = TORCHVISION
        self.channels = {2: 6, 4: 8}
        self.grids = {2: Grid(2), 4: Grid(4, 1.0)}
        # The gradient of a bias before the normalisation would be rounding noise.
        self.conv1 = Conv(3, 6, (3, 3), stride=2, use_bias=not normalised, rngs=nnx.Rngs(0))
        self.conv2 = Conv(6, 8, (3, 3), rngs=nnx.Rngs(1))
        self.normalised = normalised
        if normalised:
            self.bn = BatchNorm(6, axis_name=DATA_AXIS)

    def __call__(
        self, image: FeatureMap, *, train: bool = False, keys: jax.Array | None = None
    ) -> dict[int, FeatureMap]:
        x = self.conv1(image)
        x = relu(self.bn(x, train=train) if self.normalised else x)
        return {2: x, 4: dropout(max_pool(relu(self.conv2(x)), 2, 2), 0.2, keys if train else None)}


def network(normalised: bool, label_maps: Mapping[str, int] = ONE_MAP) -> PureModel:
    """Returns a tiny FCN whose score layers are random instead of zero."""
    model = FCN(Pooled(normalised=normalised), label_maps, skips=1, rngs=nnx.Rngs(0))
    random = np.random.default_rng(1)
    for label_map in label_maps:
        for stage in model.stages:
            kernel = getattr(getattr(model, f"head{suffix(label_map)}"), f"score{stage}").kernel
            kernel[...] = random.standard_normal(kernel.shape).astype(np.float32)
    return PureModel(model)


def batch(label_maps: Mapping[str, int] = ONE_MAP) -> dict[str, np.ndarray]:
    """Returns canvases with less and less image and more and more ignored pixels.

    A second label map is valid where the first one is 0: a different number of pixels per canvas.
    """
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (BATCH, 48, 40, 3)).astype(np.uint8)
    label = random.integers(0, CLASSES, (BATCH, 48, 40)).astype(np.uint8)
    size = np.stack([48 - 5 * np.arange(BATCH), 40 - 4 * np.arange(BATCH)], axis=1)
    for index, (height, width) in enumerate(size):
        label[index, height:] = 255
        label[index, :, width:] = 255
        label[index, : height // 2][random.random((height // 2, 40)) < index / BATCH] = 255
    if len(label_maps) > 1:
        second = np.where(label == 0, random.integers(0, 3, label.shape), 255).astype(np.uint8)
        label = np.stack([label, second], axis=-1)
    return {"image": image, "label": label, "size": size.astype(np.int32)}


def train(
    use_mesh: bool,
    accumulation_steps: int = 1,
    normalised: bool = True,
    label_maps: Mapping[str, int] = ONE_MAP,
) -> dict[str, list[float]]:
    """Trains for a few steps; returns each metric by step, the final state and an evaluation."""
    config = settings(accumulation_steps)
    net = network(normalised, label_maps)
    optimizer = optim.build_optimizer(config.optim, net.decay_mask, STEPS)
    step = data_parallel.parallelize(
        make_train_step(net, optimizer, config), donate_state=True, use_mesh=use_mesh
    )
    state = create_train_state(net.variables, optimizer)
    results: dict[str, list[float]] = {}
    for _ in range(STEPS):
        state, metrics = step(state, batch(label_maps))
        for name, value in metrics.items():
            results.setdefault(name, []).append(float(value))
    leaves, _ = jax.tree_util.tree_flatten_with_path((state.params, state.batch_stats))
    for path, leaf in leaves:
        results[jax.tree_util.keystr(path)] = np.asarray(leaf).ravel().tolist()
    evaluate = data_parallel.parallelize(
        make_eval_step(net, label_maps),
        donate_state=False,
        split_results=(False, False, True),
        use_mesh=use_mesh,
    )
    variables = data_parallel.replicate((state.params, state.batch_stats), use_mesh=use_mesh)
    confusions, counts, predictions = evaluate((), batch(label_maps), variables)
    for name, confusion in confusions.items():
        results[f"confusion{suffix(name)}"] = np.asarray(confusion).ravel().tolist()
        results[f"counts{suffix(name)}"] = np.stack(counts[name]).ravel().tolist()
        share = data_parallel.local_shards(predictions[name], ndim=3)
        results[f"prediction{suffix(name)}"] = share.ravel().tolist()
    return results


@cache
def on_one_device() -> dict[str, list[float]]:
    return train(use_mesh=False)


@cache
def on_four_devices() -> dict[str, Any]:
    """Returns the results of `main`, from a process with four devices."""
    return output_on_four_devices(__file__)


def assert_same(result: dict[str, list[float]], expected: dict[str, list[float]]) -> None:
    assert result.keys() == expected.keys()
    for name, values in expected.items():
        scale = max(1e-3, *np.abs(values))
        np.testing.assert_allclose(result[name], values, atol=1e-5 * scale, rtol=0, err_msg=name)


@pytest.mark.parametrize("way", ["pmap", "mesh"])
def test_four_devices_equal_one(way: str) -> None:
    assert_same(on_four_devices()[way], on_one_device())


def test_a_mesh_equals_pmap() -> None:
    assert_same(train(use_mesh=True), on_one_device())


def test_accumulation_steps_equal_the_whole_batch() -> None:
    whole = train(use_mesh=False, normalised=False)
    assert_same(train(use_mesh=False, accumulation_steps=4, normalised=False), whole)


def test_each_label_maps_mean_is_over_all_devices_and_accumulation_steps() -> None:
    """The devices, and the accumulation steps, hold different numbers of valid pixels."""
    parts = train(use_mesh=False, accumulation_steps=4, normalised=False, label_maps=TWO_MAPS)
    assert_same(on_four_devices()["two maps"], parts)


@pytest.mark.parametrize("use_mesh", [False, True])
def test_a_step_is_compiled_once(use_mesh: bool, caplog: pytest.LogCaptureFixture) -> None:
    def add(state: jax.Array, batch: jax.Array) -> tuple[jax.Array, jax.Array]:
        total = state + jax.lax.psum(batch.sum(), DATA_AXIS)
        return total, 2 * total

    step = data_parallel.parallelize(add, donate_state=True, use_mesh=use_mesh)
    state = jax.numpy.float32(1)
    with jax.log_compiles():
        compilations = []
        for _ in range(3):
            caplog.clear()
            state, doubled = step(state, np.arange(4.0, dtype=np.float32))
            compilations.append(caplog.text.count("Finished XLA compilation"))
    assert doubled == 38  # 2·(1 + 3·6)
    assert compilations[0] > 0
    assert compilations[1:] == [0, 0]


@pytest.mark.parametrize("use_mesh", [False, True])
def test_the_state_that_a_step_returns_is_not_placed_again(
    use_mesh: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed: list[Any] = []
    replicate = data_parallel.replicate
    monkeypatch.setattr(
        data_parallel, "replicate", lambda *a, **k: placed.append(a) or replicate(*a, **k)
    )
    step = data_parallel.parallelize(lambda s, b: (s + 1, {}), donate_state=True, use_mesh=use_mesh)
    state = np.float32(1)
    for _ in range(3):
        state, _ = step(state, np.zeros(4, np.float32))
    assert state == 4
    assert len(placed) == 1


@pytest.mark.parametrize("use_mesh", [False, True])
def test_the_state_is_donated_and_constants_are_not(use_mesh: bool) -> None:
    def add(state: jax.Array, batch: jax.Array, factor: jax.Array) -> jax.Array:
        return state + factor * jax.lax.psum(batch.sum(), DATA_AXIS)

    step = data_parallel.parallelize(add, donate_state=True, use_mesh=use_mesh)
    factor = data_parallel.replicate(np.float32(2), use_mesh=use_mesh)
    first = step(np.float32(1), np.arange(4.0, dtype=np.float32), factor)
    assert first == 1 + 2 * 6
    assert step(first, np.arange(4.0, dtype=np.float32), factor) == 13 + 2 * 6
    assert first.is_deleted()
    assert not factor.is_deleted()


@pytest.mark.parametrize("use_mesh", [False, True])
def test_pmap_does_not_match_in_axes_to_arrays(use_mesh: bool) -> None:
    """The state and batch hold three arrays: as many as state, batch and constants are."""

    def add(state: Any, batch: jax.Array) -> Any:
        first, second = state
        return first + jax.lax.psum(batch.sum(), DATA_AXIS), 2 * second

    step = data_parallel.parallelize(add, donate_state=True, use_mesh=use_mesh)
    state = data_parallel.replicate(
        (np.float32(1), np.arange(3, dtype=np.float32)), use_mesh=use_mesh
    )
    total, doubled = step(state, np.arange(4.0, dtype=np.float32))
    assert total == 1 + 6
    np.testing.assert_array_equal(doubled, [0, 2, 4])
    assert all(leaf.is_deleted() for leaf in state)


class Device(NamedTuple):
    id: int
    process_index: int


def test_the_devices_of_a_host_are_consecutive(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = [Device(0, 0), Device(1, 1), Device(2, 0), Device(3, 1)]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    monkeypatch.setattr(data_parallel, "Mesh", lambda devices, axes: devices)
    order: Any = data_parallel.data_mesh(use_mesh=True)
    assert order.tolist() == [[0, 0], [2, 0], [1, 1], [3, 1]]


def test_training_changes_every_parameter_and_statistic() -> None:
    start = network(normalised=True).variables
    leaves, _ = jax.tree_util.tree_flatten_with_path(tuple(start))
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path)
        assert not np.array_equal(on_one_device()[name], np.asarray(leaf).ravel()), name


def test_the_confusion_matrix_counts_every_valid_pixel_once() -> None:
    valid = (batch()["label"] != 255).sum()
    assert sum(on_one_device()["confusion"]) == valid
    hits, truth, predicted = np.reshape(on_one_device()["counts"], (3, BATCH, CLASSES))
    assert truth.sum() == predicted.sum() == valid
    assert hits.sum() == np.trace(np.reshape(on_one_device()["confusion"], (CLASSES, CLASSES)))


def test_a_batch_that_does_not_divide_is_refused_with_a_suggestion() -> None:
    assert on_four_devices()["refusal"] == (
        "train.batch_size (=6) does not divide over 4 devices; 4 would"
    )
    with pytest.raises(
        ArgumentError, match=r"eval.batch_size \(=3\).*× 4 accumulation steps; 4 would"
    ):
        data_parallel.check_batch_divides(3, "eval.batch_size", parts=4)
    data_parallel.check_batch_divides(8, "train.batch_size", parts=4)


def main() -> None:
    assert jax.device_count() == 4
    results: dict[str, Any] = {"pmap": train(use_mesh=False), "mesh": train(use_mesh=True)}
    results["two maps"] = train(use_mesh=False, normalised=False, label_maps=TWO_MAPS)
    try:
        data_parallel.check_batch_divides(6, "train.batch_size")
    except ArgumentError as error:
        results["refusal"] = str(error)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
