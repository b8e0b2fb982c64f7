"""Normalisation of image channels, as the weights of a backbone need it."""

import dataclasses
from typing import Self

import jax
import jax.numpy as jnp

COLOURS = 3
"""Number of colour channels; they come first, in the order RGB."""


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The normalisation (x − mean) / std of channels in 0…255.

    Attributes:
        mean, std: one value per channel, in the channel order of the weights.
        bgr: whether the weights need the colours in the order BGR; images are RGB.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool = False

    @property
    def channels(self) -> int:
        """The number of channels."""
        return len(self.mean)

    @property
    def input_mean(self) -> tuple[float, ...]:
        """The mean in the channel order of images: RGB first."""
        return self.mean[2::-1] + self.mean[3:] if self.bgr else self.mean

    def for_channels(self, channels: int) -> Self:
        """Returns the normalisation for another number of channels.

        Fewer than three channels are not colours (one is grey). Channels after the third hold, for
        example, depth, also in 0…255. All channels that are not colours are normalised by the
        average mean and std of the colours.
        """
        mean, std = sum(self.mean[:COLOURS]) / COLOURS, sum(self.std[:COLOURS]) / COLOURS
        if channels < COLOURS:
            return dataclasses.replace(
                self, mean=(mean,) * channels, std=(std,) * channels, bgr=False
            )
        extra = channels - COLOURS
        return dataclasses.replace(
            self,
            mean=self.mean[:COLOURS] + (mean,) * extra,
            std=self.std[:COLOURS] + (std,) * extra,
        )

    def beyond(self, channels: int) -> Self:
        """Returns the normalisation of an image without its first `channels` (at least three)."""
        return dataclasses.replace(
            self, mean=self.mean[channels:], std=self.std[channels:], bgr=False
        )

    def __call__(self, image: jax.Array, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        """Normalises an image.

        Args:
            image: channels in 0…255, uint8 or float (b, h, w, c).
            dtype: dtype of the result.

        Returns:
            (b, h, w, c) in the channel order of the weights.

        Raises:
            ValueError: the image has the wrong number of channels.
        """
        if image.shape[-1] != self.channels:
            raise ValueError(
                f"`image` (of shape {image.shape}) must have {self.channels} channels, for which "
                "the network was built"
            )
        values = image.astype(jnp.float32)
        if self.bgr:
            values = jnp.concatenate([values[..., 2::-1], values[..., 3:]], axis=-1)
        normalised = (values - jnp.asarray(self.mean)) / jnp.asarray(self.std)
        return normalised.astype(dtype)


CAFFE = Preprocessing(mean=(104.00699, 116.66877, 122.67892), std=(1.0, 1.0, 1.0), bgr=True)
"""The ImageNet mean of the FCN authors' Caffe weights, without a division (their data layers)."""

TORCHVISION = Preprocessing(
    mean=(0.485 * 255, 0.456 * 255, 0.406 * 255), std=(0.229 * 255, 0.224 * 255, 0.225 * 255)
)
"""torchvision's ImageNet normalisation, (x/255 − mean) / std, for x in 0…255."""

INCEPTION = Preprocessing(mean=(127.5, 127.5, 127.5), std=(127.5, 127.5, 127.5))
"""The normalisation of 0…255 to −1…1 that the weights of torchvision's GoogLeNet need.

torchvision normalises images for GoogLeNet as for all networks, z = (x/255 − m) / s. With the
published weights, the network then computes z·s/0.5 + (m − 0.5)/0.5 (`transform_input`), which is
(x/255 − 0.5) / 0.5 = (x − 127.5) / 127.5.
"""

NONE = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
"""No normalisation, for channels that the data set has normalised: volumes."""

PREPROCESSING = {
    "caffe": CAFFE,
    "torchvision": TORCHVISION,
    "inception": INCEPTION,
    "none": NONE,
}
"""The normalisations of published weights, and that of volumes, by name."""
