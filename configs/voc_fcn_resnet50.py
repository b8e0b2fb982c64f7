"""torchvision's FCN on a dilated ResNet-50, on PASCAL VOC 2012, with its auxiliary loss.

    python -m fcn_jax.train --config=configs/voc_fcn_resnet50.py \\
        --config.data.root=VOCdevkit --config.init=resnet50.pth --workdir=runs/voc_resnet50

`resnet50.pth` is torchvision's classifier, or its whole `fcn_resnet50`. ResNet-101 is
`--config.model.backbone=resnet101`.

Recipe: torchvision's segmentation reference: SGD, momentum 0.9, decay 1e-4, poly 0.9, 30 epochs, a
rate of 0.02 for 32 images (here 0.01 for 16, meant for a large GPU), ten times that for the
auxiliary head, whose loss counts by half; crops of 480 from images scaled so that the shorter side
of most, 375, becomes 260 to 1040. Unlike there, normalisations do not decay, and score layers start
at zero. The result is not measured here.
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
