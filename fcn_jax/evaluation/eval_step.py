"""The evaluation step of a single device, under the mapped axis `DATA_AXIS`."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fcn_jax.data.labels import by_map
from fcn_jax.evaluation.calibration import digit_counts
from fcn_jax.evaluation.confusion import class_counts, confusion_matrices
from fcn_jax.models.confidence import packed_confidence, unpacked
from fcn_jax.models.pure_model import PureModel, most_probable, predict
from fcn_jax.parallel.data_parallel import DATA_AXIS

ClassCounts = tuple[jax.Array, jax.Array, jax.Array]
EvalStep = Callable[
    [Any, Mapping[str, jax.Array], Any],
    tuple[dict[str, jax.Array], dict[str, ClassCounts], dict[str, jax.Array]],
]


def make_eval_step(network: PureModel, num_classes: Mapping[str, int]) -> EvalStep:
    """Builds the step that predicts and counts a device's share of a batch of canvases.

    The step takes

    - a state, which it ignores: `parallelize` expects one;
    - a batch: image uint8 (b, H, W, c), size int32 (b, 2), label uint8 (b, H, W) or (b, H, W, m);
      if the labels have other sizes than the images, also label_size, int32 (b, 2), to which the
      logits are interpolated;
    - (params, batch_stats);

    and returns by label map

    - the confusion matrix of the global batch, int32 (k, k), true by predicted class,
    - the `class_counts` of each image of the global batch, int32 (b, k),
    - the predicted classes of this device's share, uint8 (b, H, W).

    Args:
        network: predicts as if each image was alone on its canvas.
        num_classes: k by label map.
    """

    def eval_step(_, batch, variables):
        confusion, counts, classes, _ = _counted(network, num_classes, batch, variables, None)
        return confusion, counts, classes

    return eval_step


def make_calibration_step(
    network: PureModel, num_classes: Mapping[str, int]
) -> Callable[[Any, Mapping[str, jax.Array], Any], Any]:
    """Builds the step that also counts by confidence.

    It takes, instead of (params, batch_stats), ((params, batch_stats), temperatures), a float32
    scalar by label map. It returns in addition the `digit_counts` of each image of the global
    batch, int32 (b, 15, 5), by label map. The arguments are those of `make_eval_step`.
    """

    def calibration_step(_, batch, constants):
        return _counted(network, num_classes, batch, *constants)

    return calibration_step


def _counted(network, num_classes, batch, variables, temperatures):
    def packed(name, logits):
        return packed_confidence(logits, temperatures[name])

    resize_to = None
    if "label_size" in batch:
        resize_to = batch["label_size"], batch["label"].shape[1:3]
    decide = most_probable if temperatures is None else packed
    predictions = predict(
        network, variables, batch["image"], batch["size"], resize_to=resize_to, decide=decide
    )
    labels = by_map(batch["label"], network.label_maps)
    confusion, counts, calibration = {}, {}, {}
    for name, prediction in predictions.items():
        if temperatures is not None:
            digits = digit_counts(labels[name], prediction, num_classes[name])
            calibration[name] = lax.all_gather(digits, DATA_AXIS, tiled=True)
            prediction, _ = unpacked(prediction)
            predictions[name] = prediction
        by_image = confusion_matrices(labels[name], prediction, num_classes[name])
        confusion[name] = lax.psum(by_image.sum(axis=0), DATA_AXIS)
        counts[name] = lax.all_gather(class_counts(by_image), DATA_AXIS, tiled=True)
    classes = {name: classes.astype(jnp.uint8) for name, classes in predictions.items()}
    return confusion, counts, classes, calibration
