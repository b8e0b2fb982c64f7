"""FCN-32s on ResNet-18 on PASCAL VOC 2012, as in "Dive into Deep Learning".

    python -m fcn_jax.train --config=configs/voc_fcn32s_resnet18.py \\
        --config.data.root=VOCdevkit --config.init=resnet18.pth --workdir=runs/voc_resnet18

The book's recipe (section "Fully Convolutional Networks"): SGD at 1e-3 with weight decay 1e-3,
batches of 32, crops of 320×480, 5 epochs, a learned transposed convolution of kernel 64, stride 32
and padding 16. Unlike the book, void pixels are ignored instead of counted as background, and
images smaller than the crop are used.

Hardware: meant for a GPU. Result: the full schedule has not been measured.
"""

from fcn_jax.config import Config


def get_config() -> Config:
    config = Config()
    config.data.name = "voc"
    config.augment.crop_px = (320, 480)
    config.augment.scale = (1.0, 1.0)
    config.augment.flip = False
    config.model.backbone = "resnet18"
    config.model.skips = 0
    config.model.alignment = "half_pixel"
    config.optim.name = "sgd"
    config.optim.learning_rate = 1e-3
    config.optim.momentum = 0.0
    config.optim.weight_decay = 1e-3
    config.optim.schedule = "constant"
    config.train.batch_size = 32
    config.train.epochs = 5
    return config
