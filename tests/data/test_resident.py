"""A data set in device memory: each image once an epoch, equal batches on one and four devices."""

import base64
import json
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax.data import resident
from fcn_jax.data.pipeline import training_batches
from fcn_jax.errors import UserError
from fcn_jax.parallel import data_parallel
from fcn_jax.parallel.data_parallel import DATA_AXIS
from fcn_jax.training import optim
from fcn_jax.training.train_step import TrainState, create_train_state, make_train_step
from tests.fake_devices import output_on_four_devices
from tests.parallel.test_data_parallel import assert_same, network, settings

COUNT = 11  # divides over no number of devices
BATCH = 8
STEPS = 6
CANVAS_PX = (48, 40)
SEED = 3


class Noise:
    """Images of noise of different sizes, with any number of channels and label maps."""

    def __init__(self, channels: int = 3, label_maps: int = 1):
        self.channels, self.label_maps = channels, label_maps

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> dict[str, Any]:
        random = np.random.default_rng(index)
        height, width = 48 - 3 * index, 20 + 2 * index
        label = random.integers(0, 4, (height, width, self.label_maps)).astype(np.uint8)
        return {
            "image": random.integers(0, 256, (height, width, self.channels)).astype(np.uint8),
            "label": label if self.label_maps > 1 else label[..., 0],
            "name": str(index),
        }


def batches_on_devices(
    use_mesh: bool, records: Noise, steps_a_call: int = 1
) -> list[dict[str, np.ndarray]]:
    """Returns the global batches of some steps that all devices select together."""

    def look(state: TrainState, batch: Any) -> tuple[TrainState, Any]:
        whole = jax.tree.map(lambda x: jax.lax.all_gather(x, DATA_AXIS, tiled=True), batch)
        return TrainState(state.step + 1, {}, {}, {}), whole

    step = resident.resident_step(
        look, count=COUNT, batch_size=BATCH, seed=SEED, steps=steps_a_call
    )
    run = data_parallel.parallelize(step, donate_state=True, use_mesh=use_mesh)
    resident_set = resident.load(records, CANVAS_PX, use_mesh)
    state = TrainState(jnp.int32(0), {}, {}, {})
    batches = []
    for _ in range(0, STEPS, steps_a_call):
        state, whole = run(state, resident_set)
        whole = jax.tree.map(np.asarray, whole)
        together = whole if steps_a_call > 1 else {name: x[None] for name, x in whole.items()}
        batches += [{name: x[i] for name, x in together.items()} for i in range(steps_a_call)]
    return batches


def streamed(records: Noise) -> list[dict[str, np.ndarray]]:
    return list(
        training_batches(
            records,
            canvas_px=CANVAS_PX,
            batch_size=BATCH,
            seed=SEED,
            workers=0,
            steps=range(STEPS),
        )
    )


def assert_same_batches(batches: list[Any], expected: list[Any]) -> None:
    for batch, wanted in zip(batches, expected, strict=True):
        assert batch.keys() == wanted.keys()
        for name, values in wanted.items():
            assert batch[name].dtype == values.dtype
            np.testing.assert_array_equal(batch[name], values)


@cache
def batches_on_one_device() -> list[dict[str, np.ndarray]]:
    return batches_on_devices(False, Noise())


def test_the_device_finds_the_batches_that_are_streamed() -> None:
    assert_same_batches(batches_on_one_device(), streamed(Noise()))


def test_several_steps_in_one_call_find_theirs_of_all_channels_and_label_maps() -> None:
    records = Noise(channels=4, label_maps=2)
    assert_same_batches(batches_on_devices(False, records, steps_a_call=3), streamed(records))


def test_an_epoch_holds_each_image_once() -> None:
    sizes = np.concatenate([batch["size"] for batch in batches_on_one_device()])
    images = (48 - sizes[:, 0]) // 3
    assert STEPS * BATCH == 4 * COUNT + 4
    epochs = images[: 4 * COUNT].reshape(4, COUNT)
    np.testing.assert_array_equal(np.sort(epochs), [np.arange(COUNT)] * 4)


@cache
def train(*, from_stream: bool = False) -> dict[str, list[float]]:
    """Trains for two steps; returns each metric by step and the final parameters."""
    net = network(normalised=False)
    config = settings()
    optimizer = optim.build_optimizer(config.optim, net.decay_mask, 2)
    bare = make_train_step(net, optimizer, config)
    step = resident.resident_step(bare, count=COUNT, batch_size=BATCH, seed=SEED)
    run = data_parallel.parallelize(bare if from_stream else step, donate_state=True)
    resident_set = resident.load(Noise(), CANVAS_PX)
    state = create_train_state(net.variables, optimizer)
    results: dict[str, list[float]] = {}
    for batch in streamed(Noise())[:2]:
        state, metrics = run(state, batch if from_stream else resident_set)
        for name, value in metrics.items():
            results.setdefault(name, []).append(float(value))
    leaves, _ = jax.tree_util.tree_flatten_with_path((state.params, state.batch_stats))
    for path, leaf in leaves:
        results[jax.tree_util.keystr(path)] = np.asarray(leaf).ravel().tolist()
    return results


@cache
def on_four_devices() -> dict[str, Any]:
    """Runs `main` on four devices: batches by 'pmap' and 'mesh', and what was 'trained'."""
    return output_on_four_devices(__file__)


@pytest.mark.parametrize("way", ["pmap", "mesh"])
def test_four_devices_find_the_batches_of_one(way: str) -> None:
    four = [
        {
            name: np.frombuffer(base64.b64decode(text), dtype).reshape(shape)
            for name, (dtype, shape, text) in batch.items()
        }
        for batch in on_four_devices()[way]
    ]
    assert_same_batches(four, streamed(Noise(channels=4, label_maps=2)))


def test_four_devices_learn_what_one_learns() -> None:
    assert_same(on_four_devices()["trained"], train())


def test_a_streamed_run_ends_in_the_same_bits() -> None:
    assert train(from_stream=True) == train()


CANVAS_BYTES = 48 * 40 * (3 + 1) + 8


@pytest.mark.parametrize(
    ("canvases_a_piece", "shard"),
    [(100, COUNT), (5, 12), (3, 12), (1 / 0.9, COUNT), (0.4, COUNT)],
)
def test_pieces_make_up_the_set(
    canvases_a_piece: float, shard: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = resident.load(Noise(), CANVAS_PX)
    assert whole["image"].shape == (1, COUNT, *CANVAS_PX, 3)
    monkeypatch.setattr(resident, "PIECE_BYTES", int(canvases_a_piece * CANVAS_BYTES))
    pieces = resident.load(Noise(), CANVAS_PX)
    assert pieces["image"].shape == (1, shard, *CANVAS_PX, 3)
    for name, values in whole.items():
        np.testing.assert_array_equal(pieces[name][:, :COUNT], values)


@pytest.mark.parametrize(
    ("count", "canvas_bytes", "devices", "share", "length"),
    [
        (2975, 7_500_000, 8, 372, 1),  # eight canvases take 0.9 pieces
        (2975, 100_000_000, 8, 372, 1),
        (2975, 1_000_000, 8, 376, 8),
        (9, 8_000_000, 1, 10, 5),  # eight would fit in a piece
        (1, 1, 8, 1, 1),
    ],
)
def test_shards_hold_few_void_canvases(
    count: int,
    canvas_bytes: int,
    devices: int,
    share: int,
    length: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for count_devices in ("local_device_count", "device_count"):
        monkeypatch.setattr(jax, count_devices, lambda: devices)
    assert resident.shard_lengths(count, canvas_bytes) == (share, length)


@pytest.mark.parametrize("steps_a_call", [1, 3])
def test_a_step_takes_nothing_from_the_host_and_is_compiled_once(
    steps_a_call: int, caplog: pytest.LogCaptureFixture
) -> None:
    def add(state: TrainState, batch: Any) -> tuple[TrainState, Any]:
        total = jax.lax.psum(batch["image"].sum(dtype=jnp.int32), DATA_AXIS)
        return TrainState(state.step + 1, {}, {}, {}), total

    step = resident.resident_step(add, count=COUNT, batch_size=BATCH, seed=SEED, steps=steps_a_call)
    run = data_parallel.parallelize(step, donate_state=True)
    resident_set = resident.load(Noise(), CANVAS_PX)
    sums, compilations = [], []
    state = TrainState(jnp.int32(0), {}, {}, {})
    with jax.log_compiles():
        for call in range(3):
            caplog.clear()
            # The first call's state comes from the host.
            with jax.transfer_guard("allow" if call == 0 else "disallow_explicit"):
                given, (state, total) = state, run(state, resident_set)
            sums.append(total)
            compilations.append(caplog.text.count("Finished XLA compilation"))
            assert call == 0 or given.step.is_deleted()  # donated
    assert compilations[0] > 0
    assert compilations[1:] == [0, 0]
    expected = [batch["image"].sum(dtype=np.int32) for batch in streamed(Noise())]
    if steps_a_call == 1:
        np.testing.assert_array_equal(np.hstack(sums), expected[:3])
    else:
        np.testing.assert_array_equal(np.hstack(sums)[:STEPS], expected)
    with (
        pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device"),
        jax.transfer_guard("disallow_explicit"),
    ):
        run(state, jax.tree.map(np.asarray, resident_set))  # so it would have been noticed


def test_a_damaged_record_ends_the_loading() -> None:
    class Damaged(Noise):
        def __getitem__(self, index: int) -> dict[str, Any]:
            if index == 7:
                raise UserError("seven.jpg: the image is damaged")
            return super().__getitem__(index)

    with pytest.raises(UserError, match=r"seven\.jpg: the image is damaged"):
        resident.load(Damaged(), CANVAS_PX)


def main() -> None:
    assert jax.device_count() == 4
    results: dict[str, Any] = {"trained": train()}
    for way, use_mesh in (("pmap", False), ("mesh", True)):
        results[way] = [
            {
                name: (x.dtype.name, x.shape, base64.b64encode(x.tobytes()).decode())
                for name, x in batch.items()
            }
            for batch in batches_on_devices(use_mesh, Noise(channels=4, label_maps=2))
        ]
    print(json.dumps(results))


if __name__ == "__main__":
    main()
