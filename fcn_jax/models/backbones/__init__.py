"""Backbones: image classifiers without their last layers, which return features by stage.

contract.py      what a backbone must offer (`Backbone`), and the check of it at build time
preprocess.py    normalisation of pixels, as the published weights need it
small.py         a small network that is trained from scratch
alexnet.py       AlexNet, torchvision's and Caffe's
vgg.py           VGG16, with and without batch normalisation
googlenet.py     GoogLeNet with batch normalisation
squeezenet.py    SqueezeNet 1.1
resnet.py        ResNet-18 to ResNet-152, dilated or not
mobilenet.py     MobileNetV3-Large, and the inverted residuals of its family
efficientnet.py  EfficientNet-Lite0
lenet.py         LeNet-5, for strings of digits
late_fusion.py   two backbones, one for colour and one for the other channels

To add a backbone, write one file, here or in a package of your own:

    import jax
    from flax import nnx

    from fcn_jax.models.backbones.contract import FeaturesByStage
    from fcn_jax.models.backbones.preprocess import TORCHVISION, Preprocessing
    from fcn_jax.models.feature_map import FeatureMap
    from fcn_jax.models.geometry import PIXELS
    from fcn_jax.models.layers import BatchNorm, Conv, relu
    from fcn_jax.registry import register_backbone

    @register_backbone("patches")
    class Patches(nnx.Module):
        def __init__(
            self,
            *,
            preprocessing: Preprocessing = TORCHVISION,
            axis_name: str | None = None,
            rngs: nnx.Rngs,
        ):
            self.preprocessing = preprocessing
            self.stem = Conv(
                preprocessing.channels, 48, (4, 4), stride=4, padding=(0, 3), rngs=rngs
            )
            self.norm = BatchNorm(48, axis_name=axis_name)
            self.conv = Conv(48, 96, (3, 3), stride=2, rngs=rngs)
            stem = PIXELS.after(4, stride=4, padding=(0, 3))
            self.channels = {4: 48, 8: 96}
            self.grids = {4: stem, 8: stem.after(3, stride=2)}

        def __call__(
            self, image: FeatureMap, *, train: bool = False, keys: jax.Array | None = None
        ) -> FeaturesByStage:
            x = relu(self.norm(self.stem(image), train=train))
            return {4: x, 8: relu(self.conv(x))}

and import that file in a config:

    import patches
    from fcn_jax.config import default_config

    def get_config():
        config = default_config()
        config.model.backbone = "patches"
        config.model.skips = 1
        return config

`fcn_jax.testing.check_backbone` runs a backbone and says which layer breaks the contract.
"""
