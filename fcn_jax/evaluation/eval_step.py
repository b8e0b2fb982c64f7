"""The pure functions that run on the devices: one training step, one evaluation step.

Each sees one device's share of the batch under the mapped axis `DATA_AXIS`. Sums are added over the
devices, and divided by what all of them counted, so the numbers do not depend on how many devices
there are: means of means would, since devices hold different numbers of void pixels. With several
label maps that holds for each of them.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import lax

from fcn_jax.data.labels import by_map
from fcn_jax.evaluation.confusion import WideCount, class_counts, confusion_matrices
from fcn_jax.models.pure_model import PureModel, predict
from fcn_jax.parallel.data_parallel import DATA_AXIS

ClassCounts = tuple[jax.Array, jax.Array, jax.Array]


def make_eval_step(
    network: PureModel, num_classes: Mapping[str, int]
) -> Callable[..., tuple[dict[str, WideCount], dict[str, ClassCounts], dict[str, jax.Array]]]:
    """Builds the step that scores a batch of canvases.

    It takes the confusion matrix so far by label map (see `no_confusion`), a batch as above, and
    (params, batch_stats), and returns by label map

    - the confusion matrix with this batch, the same everywhere,
    - `class_counts` of each image of the whole batch, int32 (b, k), the same everywhere,
    - the classes of each pixel of this device's share, uint8 (b, H, W).

    Each image is seen as if alone on its canvas. In a batch with `label_size`, int32 (b, 2), the
    logits are interpolated from the size of the image to that of its label.
    """

    def eval_step(so_far, batch, variables):
        resize_to = None
        if "label_size" in batch:
            resize_to = batch["label_size"], batch["label"].shape[1:3]
        predictions = predict(
            network, variables, batch["image"], batch["size"], resize_to=resize_to
        )
        labels = by_map(batch["label"], network.label_maps)
        confusions, counts = {}, {}
        for name, prediction in predictions.items():
            of_images = confusion_matrices(labels[name], prediction, num_classes[name])
            confusions[name] = so_far[name].plus(lax.psum(of_images.sum(axis=0), DATA_AXIS))
            counts[name] = lax.all_gather(class_counts(of_images), DATA_AXIS, tiled=True)
        return confusions, counts, {name: p.astype(jnp.uint8) for name, p in predictions.items()}

    return eval_step


def no_confusion(num_classes: Mapping[str, int]) -> dict[str, WideCount]:
    """What evaluation begins with, by label map: nothing counted of (k, k)."""
    return {name: WideCount.zeros(count, count) for name, count in num_classes.items()}
