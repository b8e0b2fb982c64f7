"""Image classifiers without their classifier: images in, features by stride out.

`Backbone` says what the head of an FCN needs of one; each file here is one family.
"""

from typing import Protocol

import jax

from fcn_jax.models.backbones.preprocess import Preprocessing
from fcn_jax.models.layers import FeatureMap


class Backbone(Protocol):
    """What every backbone offers.

    preprocessing: what its weights were trained on, applied to RGB in 0…255.
    channels: stride → number of features, for each stride that it offers.
    offsets: stride → where its first position lies: position i at stride s is centred on pixel
        s·i + offset, counted from the centre of the first pixel.
    """

    preprocessing: Preprocessing
    channels: dict[int, int]
    offsets: dict[int, float]

    def __call__(
        self, image: FeatureMap, *, train: bool = False, keys: jax.Array | None = None
    ) -> dict[int, FeatureMap]:
        """Normalised pixels (b, h, w, 3) to features (b, ceil(h/s), ceil(w/s), c) by stride s.

        train: batch normalisation by, and of, the batch; dropout where keys (b,) are given.
        """
        ...
