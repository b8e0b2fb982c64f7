"""FCN-8s on SqueezeNet 1.1 on PASCAL VOC 2012, for laptops without a GPU.

    python -m fcn_jax.train --config=configs/voc_fcn8s_squeezenet.py \\
        --config.data.root=VOCdevkit --config.init=squeezenet1_1.npz --workdir=runs/voc

SqueezeNet's coarsest features have stride 16. Two context layers that start from random weights add
stride 32, as fc6 and fc7 do in VGG16; strides 16 and 8 are fused in.

Hardware: ten minutes on two cores of an AMD EPYC. Result on a part of VOC (437 training and 445
validation images, 18 classes present), 26 November 2026: mIoU 22.4 %, pixel accuracy 83.3 %.
"""

from fcn_jax.config import Config


def get_config() -> Config:
    config = Config()
    config.data.name = "voc"
    config.augment.crop_px = (320, 320)
    config.augment.scale = (0.5, 1.5)
    config.model.backbone = "squeezenet"
    config.model.skips = 2
    config.model.context_features = 256
    # The features at strides 16 and 8 have root mean squares of about 12 and 50. Scaled to about 1,
    # all layers learn at one learning rate.
    config.model.score_scales = (1.0, 0.1, 0.02)
    config.model.upsampling = "fixed"
    config.optim.learning_rate = 2e-3
    config.optim.backbone_rate = 0.1
    config.optim.warmup_steps = 50
    config.train.batch_size = 8
    config.train.epochs = 24
    return config
