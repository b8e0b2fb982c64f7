"""FCN-8s on VGG16 on PASCAL VOC 2012, trained at once: no stages, skips scaled down (PAMI 2017).

    python -m fcn_jax.train --config=configs/voc_fcn8s_atonce_vgg16.py \\
        --config.data.root=VOCdevkit --config.init=VGG_ILSVRC_16_layers.caffemodel \\
        --workdir=runs/voc_fcn8s_atonce

The features of pool4 and pool3 are multiplied by 0.01 and 0.0001 before they are scored. Training
takes 300,000 steps at a learning rate of 1e-10 (the authors' code).

Hardware: meant for a GPU with 16 GB. Result: the full schedule has not been measured.
"""

from pathlib import Path

from fcn_jax.config import Config, load


def get_config() -> Config:
    config = load(Path(__file__).with_name("voc_fcn32s_vgg16.py"))
    config.model.skips = 2
    config.model.score_scales = (1.0, 0.01, 0.0001)
    config.train.steps = 300_000
    return config
