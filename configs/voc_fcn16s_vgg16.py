"""FCN-16s on VGG16 on PASCAL VOC 2012: the paper's second stage, from a run of FCN-32s.

    python -m fcn_jax.train --config=configs/voc_fcn16s_vgg16.py \\
        --config.data.root=VOCdevkit --config.init=runs/voc_fcn32s --workdir=runs/voc_fcn16s

The score layer of pool4 starts at zero, and the learning rate is 1e-12 (the authors' code).

Hardware: meant for a GPU with 16 GB. Result: the full schedule has not been measured.
"""

from pathlib import Path

from fcn_jax.config import Config, load


def get_config() -> Config:
    config = load(Path(__file__).with_name("voc_fcn32s_vgg16.py"))
    config.model.skips = 1
    config.optim.learning_rate = 1e-12
    return config
