"""Image classifiers without their classifier: images in, features by stage out.

`Backbone` says what the head of an FCN needs of one; each file here is one family.
"""

from typing import Protocol

import jax

from fcn_jax.models.backbones.preprocess import Preprocessing
from fcn_jax.models.feature_map import FeatureMap
from fcn_jax.models.geometry import Grid


class Backbone(Protocol):
    """What every backbone offers.

    A stage is named by the stride of its features in the classifier: 2, 4, 8, 16, 32. A dilated
    ResNet keeps the names and holds its last stages at a finer stride, which their grids tell.

    preprocessing: what its weights were trained on, applied to channels in 0…255.
    channels: stage → number of features, for each stage that it offers.
    grids: stage → where its features lie.
    """

    preprocessing: Preprocessing
    channels: dict[int, int]
    grids: dict[int, Grid]

    def __call__(
        self, image: FeatureMap, *, train: bool = False, keys: jax.Array | None = None
    ) -> dict[int, FeatureMap]:
        """Normalised pixels (b, h, w, channels) to features by stage.

        train: batch normalisation by, and of, the batch; dropout where keys (b,) are given.
        """
        ...
