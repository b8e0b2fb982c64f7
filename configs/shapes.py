"""A small FCN-8s on drawn shapes: the embedded default, on any machine, without a download.

    python -m fcn_jax.train --config=configs/shapes.py

is the same as `python -m fcn_jax.train`.
"""

from fcn_jax.config import Config, default_config


def get_config() -> Config:
    return default_config()
