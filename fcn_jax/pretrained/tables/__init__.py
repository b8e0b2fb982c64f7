"""One table of names per source of weights: our name -> the source's name and layout.

caffe           the authors' FCNs and the classifiers that they start from
torchvision     classifiers and segmentation networks
torchfcn        the FCNs of Kentaro Wada
mmseg           mmsegmentation's FCN-D6
timm            EfficientNet-Lite0
classifiers     the last layers of all classifiers, for heat maps
"""

from collections.abc import Iterator

from fcn_jax.models.backbones.resnet import DEPTHS
from fcn_jax.pretrained.source import WeightSource
from fcn_jax.pretrained.tables import caffe, mmseg, timm, torchfcn, torchvision


def sources() -> Iterator[WeightSource]:
    """Yields every known source."""
    yield caffe.squeezenet()
    yield caffe.vgg16_trunk()
    yield caffe.vgg16()
    yield caffe.alexnet()
    yield caffe.alexnet_fcn()
    for net in torchfcn.SKIP_LAYERS:
        yield caffe.vgg16_fcn(net)
        yield torchfcn.torchfcn(net)
    yield caffe.vgg16_fcn_at_once()
    yield torchvision.alexnet()
    yield torchvision.vgg16()
    yield torchvision.vgg16_bn()
    yield torchvision.squeezenet()
    yield torchvision.googlenet()
    yield torchvision.mobilenet_v3_large()
    yield timm.efficientnet_lite0()
    for depth in DEPTHS:
        yield torchvision.resnet(depth)
    for depth in (50, 101):
        yield torchvision.fcn_resnet(depth)
        yield mmseg.fcn(depth)
