"""FCN-8s on ResNet-18 for your own images: a folder with images/, masks/ and classes.txt.

    python -m fcn_jax.train --config=configs/folder.py \\
        --config.data.root=DIR --config.init=resnet18.pth --workdir=runs/mine

Masks hold a class index at each pixel, and 255 at ignored pixels. If some classes are rare, add
--config.loss.class_weights=balanced. Without --config.init the network starts from random weights
and needs many more images and epochs.

Hardware: any. Result: depends on the images.
"""

from fcn_jax.config import Config


def get_config() -> Config:
    config = Config()
    config.data.name = "folder"
    config.augment.crop_px = (320, 320)
    config.augment.scale = (0.5, 1.5)
    config.model.backbone = "resnet18"
    config.model.skips = 2
    config.optim.learning_rate = 1e-3
    config.optim.backbone_rate = 0.1
    config.optim.warmup_steps = 50
    config.train.batch_size = 8
    config.train.epochs = 50
    return config
