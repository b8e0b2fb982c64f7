"""FCN-8s on VGG16 on PASCAL VOC 2012: the paper's third stage, from a run of FCN-16s.

    python -m fcn_jax.train --config=configs/voc_fcn8s_vgg16.py \\
        --config.data.root=VOCdevkit --config.init=runs/voc_fcn16s --workdir=runs/voc_fcn8s

The score layer of pool3 starts at zero, and the learning rate is 1e-14 (the authors' code).

Hardware: meant for a GPU with 16 GB. Result: the full schedule has not been measured.
"""

from pathlib import Path

from fcn_jax.config import Config, load


def get_config() -> Config:
    config = load(Path(__file__).with_name("voc_fcn32s_vgg16.py"))
    config.model.skips = 2
    config.optim.learning_rate = 1e-14
    return config
