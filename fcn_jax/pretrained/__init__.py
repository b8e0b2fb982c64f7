"""Weights made elsewhere: one explicit table of names per source, and one way to apply it."""

from fcn_jax.pretrained.load import Weights, flat, read, zeros

__all__ = ["Weights", "flat", "read", "zeros"]
