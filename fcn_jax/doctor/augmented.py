"""The first samples that training would draw, augmented on the device by training's own code."""

import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax.config import Config
from fcn_jax.data.augment import Crop
from fcn_jax.data.canvases import training_canvas
from fcn_jax.data.datasets import open_dataset
from fcn_jax.data.labels import by_map
from fcn_jax.data.order import image_at
from fcn_jax.data.pipeline import training_batches
from fcn_jax.data.volumes import with_patch
from fcn_jax.errors import UserError, printable
from fcn_jax.models.build import abstract_model
from fcn_jax.pictures.contact_sheet import Entry
from fcn_jax.pictures.orthogonal import orthogonal_views
from fcn_jax.training.train_step import draw_crop, sample_keys

SAMPLES = 10


def augmented_entries(config: Config) -> Iterator[Entry]:
    """Yields the first ten samples of a training with these settings and seed, for a sheet.

    Volumes are shown in three orthogonal views through the middle of their foreground.

    Raises:
        UserError: the data set cannot be prepared, or the training split has no images.
    """
    dataset = open_dataset(config.data)
    config = with_patch(config, dataset)
    records = dataset.split(config.data.train_split)
    if not len(records):
        raise UserError(f"split {config.data.train_split} of {dataset.name} has no images")
    sizes = dataset.statistics(config.data.train_split).sizes
    batch_size = min(config.train.batch_size, SAMPLES)
    batches = training_batches(
        records,
        canvas_px=training_canvas(config, sizes),
        batch_size=batch_size,
        seed=config.seed,
        workers=0,
        steps=range(math.ceil(SAMPLES / batch_size)),
    )
    model = abstract_model(
        config.model, dataset.num_classes, channels=dataset.channels, ndim=dataset.ndim
    )
    fill = model.backbone.preprocessing.input_mean

    @jax.jit
    def draw(step: jax.Array, batch: dict[str, jax.Array]) -> Crop:
        index = jnp.arange(batch_size)
        crop_keys, _ = sample_keys(jax.random.key(config.seed), step, index)
        crop = jax.vmap(draw_crop(config, fill))
        return crop(crop_keys, batch["image"], batch["label"], batch["size"])

    position = 0
    for step, batch in enumerate(batches):
        crop = draw(jnp.int32(step), batch)
        for image, label in zip(np.asarray(crop.image), np.asarray(crop.label), strict=True):
            if position == SAMPLES:
                return
            index = image_at(position, count=len(records), seed=config.seed)
            name = records[index]["name"]
            position += 1
            for label_map, mask in by_map(
                label.astype(np.uint8), tuple(dataset.label_maps)
            ).items():
                if dataset.ndim == 3:
                    picture, mask = orthogonal_views(image, mask)
                else:
                    picture = np.clip(image[..., :3], 0, 255).round().astype(np.uint8)
                    picture = np.broadcast_to(picture, (*picture.shape[:2], 3))
                of_map = f", {label_map}" if label_map else ""
                caption = printable(f"{position}: {name}{of_map}")
                class_names = dataset.label_maps[label_map]
                yield Entry(caption, picture, mask, class_names, colours=dataset.colours)
