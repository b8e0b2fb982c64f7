"""FCN-8s in three dimensions on the hippocampus, beside `hippocampus_unet3d.py`.

    python -m fcn_jax.train --config=configs/hippocampus_fcn8s.py --config.data.root=DIR \\
        --workdir=runs/hippocampus_fcn8s

DIR holds images/ and labels/. Hardware: any. Result: docs/volumes.md.
"""

from pathlib import Path

from fcn_jax.config import Config, load


def get_config() -> Config:
    config = load(Path(__file__).with_name("hippocampus_unet3d.py"))
    config.model.backbone = "small"
    config.model.decoder = "fcn"
    config.model.features = (32, 64, 128)
    config.model.norm = "batch"
    config.model.skips = 2
    config.model.deep_supervision = 0
    config.train.batch_size = 2
    return config
