"""A training loop of your own: own batches, own optimizer, own step; then a model file is saved.

    python examples/own_loop.py [STEPS]

fcn_jax contributes a data set, a model, a loss and a predictor. All else is in this file.
"""

import sys
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

import fcn_jax

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 200
SIDE_PX, BATCH_SIZE = 96, 8

config = fcn_jax.Config()  # drawn shapes, FCN-8s on a small backbone
dataset = fcn_jax.open_dataset(config.data)
model: Any = fcn_jax.init_model(config.model, dataset.num_classes, seed=0)
optimizer = nnx.Optimizer(model, optax.adamw(3e-3), wrt=nnx.Param)
loss = fcn_jax.losses.CrossEntropy()


@nnx.jit
def train_step(model: Any, optimizer: Any, image: Any, mask: Any) -> jax.Array:
    """Updates the model on one batch: image uint8 (b, h, w, 3), mask uint8 (b, h, w)."""
    value, gradients = nnx.value_and_grad(lambda m: loss(m(image, train=True), mask))(model)
    optimizer.update(model, gradients)
    return value


def random_crop(record: Any, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns a square of the image and of its mask, SIDE_PX wide."""
    top, left = (rng.integers(size - SIDE_PX + 1) for size in record["label"].shape)
    window = slice(top, top + SIDE_PX), slice(left, left + SIDE_PX)
    return record["image"][window], record["label"][window]


records, rng = dataset.split("train"), np.random.default_rng(0)
for step in range(1, STEPS + 1):
    chosen = [records[int(i)] for i in rng.integers(len(records), size=BATCH_SIZE)]
    images, masks = zip(*(random_crop(record, rng) for record in chosen), strict=True)
    value = train_step(model, optimizer, np.stack(images), np.stack(masks))
    if step % 50 == 0 or step == STEPS:
        print(f"step {step}: loss {value:.3f}", flush=True)

predictor = fcn_jax.Predictor.from_model(
    model, config=config, label_maps=dataset.label_maps, step=STEPS
)
predictor.save("runs/own_loop.safetensors")
# print(fcn_jax.evaluate(predictor, dataset=dataset)) prints the scores on the split val.
record = dataset.split("val")[0]  # of any size, odd ones included
label_map, truth = predictor(record["image"]), record["label"]
accuracy = (label_map == truth)[truth != 255].mean()
print(f"{record['name']}: {truth.shape[0]} × {truth.shape[1]} pixels, accuracy {accuracy:.1%}")
