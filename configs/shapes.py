"""A small FCN-8s on drawn shapes: the embedded default, without a download.

    python -m fcn_jax.train --config=configs/shapes.py

does the same as `python -m fcn_jax.train`.

Hardware: any; two minutes on two CPU cores.
"""

from fcn_jax.config import Config, default_config


def get_config() -> Config:
    return default_config()
