"""How an image's bytes become what a backbone's weights were trained on."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """mean and std: of each channel, in 0…255, in the order that the weights want."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bgr: bool = False

    def __call__(self, image: jax.Array, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        """RGB in 0…255, uint8 or float (b, h, w, 3), to normalised (b, h, w, 3) of `dtype`."""
        values = image.astype(jnp.float32)
        if self.bgr:
            values = values[..., ::-1]
        normalised = (values - jnp.asarray(self.mean)) / jnp.asarray(self.std)
        return normalised.astype(dtype)


CAFFE = Preprocessing(mean=(104.00699, 116.66877, 122.67892), std=(1.0, 1.0, 1.0), bgr=True)
"""The ImageNet mean of the FCN authors' Caffe weights; no division (their data layers)."""

TORCHVISION = Preprocessing(
    mean=(0.485 * 255, 0.456 * 255, 0.406 * 255), std=(0.229 * 255, 0.224 * 255, 0.225 * 255)
)
"""torchvision's ImageNet normalisation, (x/255 − mean) / std, in bytes."""
