"""Signals: one-dimensional networks learn to label heartbeats, by the code for images."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fcn_jax.config import Config, ModelConfig
from fcn_jax.data.augment import Crop
from fcn_jax.models.build import init_model
from fcn_jax.models.pure_model import PureModel, predict
from fcn_jax.parallel.data_parallel import DATA_AXIS, parallelize, replicate
from fcn_jax.training.objective import Objective
from fcn_jax.training.optim import build_optimizer
from fcn_jax.training.train_step import TrainState, create_train_state

WAVES = ((-40, 6, 25), (0, 2, 120), (45, 10, 45))
"""P, QRS and T of an electrocardiogram: centre, width and height."""

STEPS = 120


def heartbeats(seed: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """A signal uint8 (length, 1), and its label: 0, or 1, 2, 3 within two widths of a wave."""
    random = np.random.default_rng(seed)
    time = np.arange(length)
    signal = 70 + 10 * np.sin(time / random.uniform(60, 90)) + random.normal(0, 3, length)
    label = np.zeros(length, np.uint8)
    beat = random.integers(0, 100)
    while beat < length + 100:
        for wave, (centre, width, height) in enumerate(WAVES, start=1):
            distance = time - beat - centre
            signal = signal + height * np.exp(-0.5 * (distance / width) ** 2)
            label[np.abs(distance) <= 2 * width] = wave
        beat += random.integers(130, 220)
    return np.clip(signal, 0, 255).astype(np.uint8)[:, None], label


@pytest.mark.parametrize("decoder", ["fcn", "unet"])
def test_a_network_learns_to_label_heartbeats(decoder: str) -> None:
    config = Config()
    config.model = ModelConfig(backbone="small", features=(8, 12, 16, 24))
    if decoder == "unet":
        config.model = ModelConfig(backbone="unet", decoder="unet", features=(8, 12, 16, 24))
    config.model.dropout = 0.0
    config.optim.learning_rate = 2e-2
    config.optim.warmup_steps = 5
    network = PureModel(
        init_model(config.model, 4, channels=1, ndim=1, seed=0, axis_name=DATA_AXIS)
    )
    optimizer = build_optimizer(config.optim, network.decay_mask, total_steps=STEPS)
    objective = Objective(network, config, {})

    def train_step(state, batch):
        crop = Crop(batch["signal"], batch["label"], None)
        keys = jax.random.split(jax.random.key(0), len(crop.label))
        gradients, batch_stats, metrics = objective.gradients(
            state.params, state.batch_stats, crop, keys
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

    step = parallelize(train_step, donate_state=True)
    state = replicate(create_train_state(network.variables, optimizer))
    signals, labels = (
        np.stack(x) for x in zip(*(heartbeats(n, 512) for n in range(64)), strict=True)
    )
    for index in range(STEPS):
        chosen = np.random.default_rng(index).choice(64, 8, replace=False)
        batch = {"signal": signals[chosen], "label": labels[chosen].astype(np.int32)}
        state, _ = step(state, batch)

    # Signals of two lengths on one canvas, neither of them a multiple of a stride.
    canvases, sizes = np.full((2, 700, 1), 255, np.uint8), np.array([[693], [505]], np.int32)
    truth = []
    for canvas, (length,), seed in zip(canvases, sizes, (1000, 1001), strict=True):
        canvas[:length], label = heartbeats(seed, length)
        truth.append(label)
    variables = jax.device_get((state.params, state.batch_stats))
    classes = predict(network, variables, jnp.asarray(canvases), jnp.asarray(sizes))
    right = sum(int((classes[""][n, : len(label)] == label).sum()) for n, label in enumerate(truth))
    share = right / sizes.sum()
    print(f"{decoder}: {share:.3f} of the samples right")
    assert share > 0.7  # 57 % of the samples belong to no wave
