"""FCN-32s on AlexNet on PASCAL VOC 2012, as in the paper.

    python -m fcn_jax.train --config=configs/voc_fcn32s_alexnet.py \\
        --config.data.root=VOCdevkit --config.init=bvlc_reference_caffenet.caffemodel \\
        --workdir=runs/voc_alexnet

Solver of the authors' code: the mean loss at a learning rate of 1e-4, momentum 0.9, single whole
images, 20 of which are accumulated. The number of steps, 100,000 / 20, shows the network as many
images as their FCN-32s on VGG16.

Hardware: meant for a GPU. Result: the full schedule has not been measured.
"""

from fcn_jax.config import Config


def get_config() -> Config:
    config = Config()
    config.data.name = "voc"
    config.augment.crop_px = None
    config.augment.scale = (1.0, 1.0)
    config.augment.flip = False
    config.model.backbone = "alexnet_caffe"
    config.model.padding = "paper"
    config.model.skips = 0
    config.model.upsampling = "fixed"
    config.optim.name = "sgd"
    config.optim.learning_rate = 1e-4
    config.optim.momentum = 0.9
    config.optim.bias_rate = 2.0
    config.optim.weight_decay = 5e-4
    config.optim.schedule = "constant"
    config.train.batch_size = 20
    config.train.accumulation_steps = 20
    config.train.steps = 5_000
    return config
