"""How an image's bytes become what a backbone's weights were trained on."""

import dataclasses
from typing import Self

import jax
import jax.numpy as jnp

COLOURS = 3
"""The channels of an image that are colours, RGB: the first ones."""


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """mean and std: of each channel, in 0…255, in the order that the weights want."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool = False

    @property
    def channels(self) -> int:
        return len(self.mean)

    @property
    def input_mean(self) -> tuple[float, ...]:
        """The mean in the order of the image's own channels: RGB first."""
        return self.mean[2::-1] + self.mean[3:] if self.bgr else self.mean

    def for_channels(self, channels: int) -> Self:
        """The same for images of another number of channels.

        One channel is grey, two are no colours. Beyond the third they are, say, depth: bytes as
        well, normalised by the colours' average mean and std.
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
        """Of the channels behind the first three or more, by themselves."""
        return dataclasses.replace(
            self, mean=self.mean[channels:], std=self.std[channels:], bgr=False
        )

    def __call__(self, image: jax.Array, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        """Channels in 0…255, uint8 or float (b, h, w, c), to normalised (b, h, w, c) of `dtype`."""
        if image.shape[-1] != self.channels:
            raise ValueError(
                f"`image` (of shape {image.shape}) must have {self.channels} channels, as the "
                "network was built for"
            )
        values = image.astype(jnp.float32)
        if self.bgr:
            values = jnp.concatenate([values[..., 2::-1], values[..., 3:]], axis=-1)
        normalised = (values - jnp.asarray(self.mean)) / jnp.asarray(self.std)
        return normalised.astype(dtype)


CAFFE = Preprocessing(mean=(104.00699, 116.66877, 122.67892), std=(1.0, 1.0, 1.0), bgr=True)
"""The ImageNet mean of the FCN authors' Caffe weights; no division (their data layers)."""

TORCHVISION = Preprocessing(
    mean=(0.485 * 255, 0.456 * 255, 0.406 * 255), std=(0.229 * 255, 0.224 * 255, 0.225 * 255)
)
"""torchvision's ImageNet normalisation, (x/255 − mean) / std, in bytes."""

INCEPTION = Preprocessing(mean=(127.5, 127.5, 127.5), std=(127.5, 127.5, 127.5))
"""0…255 to −1…1: what the weights of torchvision's GoogLeNet expect.

torchvision normalises for it as for all others, and the network undoes that where it has the
published weights (`transform_input`): of z = (x/255 − m) / s it makes z·s/0.5 + (m − 0.5)/0.5,
which is (x/255 − 0.5) / 0.5 = (x − 127.5) / 127.5.
"""

PREPROCESSING = {"caffe": CAFFE, "torchvision": TORCHVISION, "inception": INCEPTION}
