"""What each published classifier does with the features of our backbone.

The other tables leave its last layers out, which a segmentation network has no place for. As a
fully convolutional classifier (`models/convolutionalize.py`) it has them.
"""

from collections.abc import Set
from dataclasses import dataclass

import jax

from fcn_jax.models.backbones.resnet import DEPTHS
from fcn_jax.models.convolutionalize import Average, ClassifierLayer

Names = tuple[str, str]
"""Theirs, of the weight and the bias of a fully connected layer, or of a 1×1 convolution."""


@dataclass(frozen=True)
class Ending:
    """The end of a classifier.

    backbone: the `config.model.backbone` that is before it. steps: its layers by name, averages of
    as many positions as there are on an image of the classifier's own size, and activations.
    """

    backbone: str
    steps: tuple[Names | ClassifierLayer, ...]

    @property
    def names(self) -> set[str]:
        return {name for step in self.steps if isinstance(step, tuple) for name in step}


def find(backbone: str, names: Set[str]) -> Ending | None:
    """The ending of a backbone whose layers are among the names."""
    endings = (e for e in ENDINGS if e.backbone == backbone and e.names <= names)
    return next(endings, None)


def _torch(layer: str) -> Names:
    return f"{layer}.weight", f"{layer}.bias"


def _caffe(layer: str) -> Names:
    return f"{layer}/0", f"{layer}/1"


ENDINGS = (
    # Caffe's, the first of them under the names that the .npz has, and on 227×227 pixels.
    Ending("squeezenet", (("conv10/w", "conv10/b"), jax.nn.relu, Average(14))),
    Ending("vgg16", (_caffe("fc8"),)),
    Ending("alexnet_caffe", (_caffe("fc8"),)),
    # torchvision's.
    Ending("squeezenet", (_torch("classifier.1"), jax.nn.relu, Average(13))),
    *(Ending(f"resnet{depth}", (Average(7), _torch("fc"))) for depth in DEPTHS),
    Ending("googlenet", (Average(7), _torch("fc"))),
    Ending(
        "mobilenet_v3_large",
        (Average(7), _torch("classifier.0"), jax.nn.hard_swish, _torch("classifier.3")),
    ),
    Ending("alexnet", (_torch("classifier.6"),)),
    Ending("vgg16", (_torch("classifier.6"),)),
    Ending("vgg16_bn", (_torch("classifier.6"),)),
    # timm's.
    Ending("efficientnet_lite0", (Average(7), _torch("classifier"))),
)
"""Of all classifiers in the other tables."""
