"""The last layers of each published classifier, behind the features of our backbone.

The other tables ignore these layers, because segmentation networks do not have them. Fully
convolutional classifiers (`models/convolutionalize.py`) do.
"""

from collections.abc import Set
from dataclasses import dataclass

import jax

from fcn_jax.models.backbones.resnet import DEPTHS
from fcn_jax.models.convolutionalize import Average, ClassifierLayer

Names = tuple[str, str]
"""The source's names of the weight and bias of a fully connected layer or a 1×1 convolution."""


@dataclass(frozen=True)
class Ending:
    """The last layers of a classifier.

    Args:
        backbone: the `config.model.backbone` that they follow.
        steps: layers by name, averages over the positions of an image of the classifier's own size,
            and activations.
    """

    backbone: str
    steps: tuple[Names | ClassifierLayer, ...]

    @property
    def names(self) -> set[str]:
        return {name for step in self.steps if isinstance(step, tuple) for name in step}


def find(backbone: str, names: Set[str]) -> Ending | None:
    """Returns the ending of a backbone whose layers are among the names, or None."""
    endings = (e for e in ENDINGS if e.backbone == backbone and e.names <= names)
    return next(endings, None)


def _torch(layer: str) -> Names:
    return f"{layer}.weight", f"{layer}.bias"


def _caffe(layer: str) -> Names:
    return f"{layer}/0", f"{layer}/1"


ENDINGS = (
    # Caffe: the SqueezeNet of the .npz was trained on 227×227 pixels.
    Ending("squeezenet", (("conv10/w", "conv10/b"), jax.nn.relu, Average(14))),
    Ending("vgg16", (_caffe("fc8"),)),
    Ending("alexnet_caffe", (_caffe("fc8"),)),
    # torchvision
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
    # timm
    Ending("efficientnet_lite0", (Average(7), _torch("classifier"))),
)
"""The endings of all classifiers in the other tables."""
