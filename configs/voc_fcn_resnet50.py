"""torchvision's FCN on a dilated ResNet-50, on PASCAL VOC 2012, with its auxiliary loss.

    python -m fcn_jax.train --config=configs/voc_fcn_resnet50.py \\
        --config.data.root=VOCdevkit --config.init=resnet50.pth --workdir=runs/voc_resnet50

`resnet50.pth` is torchvision's classifier or its whole `fcn_resnet50`. For ResNet-101, add
`--config.model.backbone=resnet101`.

Recipe of torchvision's segmentation reference: SGD, momentum 0.9, weight decay 1e-4, the poly
schedule with power 0.9, 30 epochs, a learning rate of 0.02 for 32 images (here 0.01 for 16), ten
times that for the auxiliary head, whose loss has the weight 0.5; crops of 480×480 from images that
are scaled so that a shorter side of 375 pixels, the most common one, becomes 260 to 1040. Unlike
there, parameters of normalisations do not decay, and score layers start at zero.

Hardware: meant for a large GPU. Result: the full schedule has not been measured.
"""

from fcn_jax.config import Config


def get_config() -> Config:
    config = Config()
    config.data.name = "voc"
    config.augment.crop_px = (480, 480)
    config.augment.scale = (0.7, 2.8)
    config.model.backbone = "resnet50"
    config.model.output_stride = 8
    config.model.skips = 0
    config.model.head = "hidden"
    config.model.auxiliary_weight = 0.5
    config.model.upsampling = "interpolate"
    config.model.dropout = 0.1
    config.optim.name = "sgd"
    config.optim.learning_rate = 0.01
    config.optim.auxiliary_rate = 10.0
    config.optim.weight_decay = 1e-4
    config.train.batch_size = 16
    config.train.epochs = 30
    return config
