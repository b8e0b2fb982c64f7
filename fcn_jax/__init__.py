"""Fully convolutional networks for semantic segmentation, in JAX.

Train, score and use a network from the terminal:

    python -m fcn_jax.train      # without arguments: a small network on drawn images, two minutes
    python -m fcn_jax.evaluate --workdir=DIR
    python -m fcn_jax.predict  --workdir=DIR --output=OUT PATH...
"""

__version__ = "0.1.0"
