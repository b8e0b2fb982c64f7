"""FCN-32s on VGG16 on PASCAL VOC 2012, as in the paper: the first of three stages.

    python -m fcn_jax.train --config=configs/voc_fcn32s_vgg16.py \\
        --config.data.root=VOCdevkit --config.init=VGG_ILSVRC_16_layers.caffemodel \\
        --workdir=runs/voc_fcn32s

The next stages are `voc_fcn16s_vgg16.py` and `voc_fcn8s_vgg16.py`, each from the run before.

Solver of Long, Shelhamer & Darrell (PAMI 2017) and the authors' code: single whole images, momentum
0.99, the summed loss at a learning rate of 1e-10, 2e-10 for biases, weight decay 5e-4, 100,000
steps; upsampling stays bilinear. Unlike theirs, an epoch visits every image once. The image is
padded by 100 as in their code; --config.model.padding=same computes half as much with the same
weights.

Hardware: meant for a GPU with 16 GB. Result: the full schedule has not been measured.
"""

from fcn_jax.config import Config


def get_config() -> Config:
    config = Config()
    config.data.name = "voc"
    config.augment.crop_px = None
    config.augment.scale = (1.0, 1.0)
    config.augment.flip = False
    config.model.backbone = "vgg16"
    config.model.padding = "paper"
    config.model.skips = 0
    config.model.upsampling = "fixed"
    config.loss.normalization = "sum"
    config.optim.name = "sgd"
    config.optim.learning_rate = 1e-10
    config.optim.momentum = 0.99
    config.optim.bias_rate = 2.0
    config.optim.weight_decay = 5e-4
    config.optim.schedule = "constant"
    config.train.batch_size = 1
    config.train.steps = 100_000
    config.train.log_every_steps = 100
    config.train.eval_every_steps = 4_000
    return config
