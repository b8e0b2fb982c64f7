"""Training losses: sums over pixels, and a value computed once from the sums of the whole batch.

base.py      `Loss`, `PixelLoss` and `RankedLoss`: the interfaces of a loss
pixel.py     cross-entropy and focal loss
overlap.py   soft Dice, generalised Dice, Jaccard and Tversky
ranked.py    losses that rank pixels: OHEM, top-k, Lovász-Softmax
build.py     the loss that a config names, a weighted sum of these

The training step adds the sums over blocks of rows, accumulation steps and devices before it takes
the value, so a loss does not depend on how the batch was divided. Select losses with `loss.names`
and `loss.weights`, and give their options with `loss.options`.

Write a loss in one of three ways, and register it by name:

    @register_loss("squared_error")
    class SquaredError(PixelLoss):  # a weighted mean over pixels
        def per_pixel(self, logits, target):
            truth = jax.nn.one_hot(target, logits.shape[-1])
            return jnp.sum((jax.nn.softmax(logits) - truth) ** 2, axis=-1)

    @register_loss("my_jaccard")
    class MyJaccard(Loss):  # any other function of sums
        def sums(self, logits, label): ...
        def value(self, sums): ...

    @register_loss("hardest_half")
    class HardestHalf(RankedLoss):  # a function of the values of all pixels
        def pixel_values(self, logits, label): ...
        def value(self, values_and_label): ...

The constructor takes the keyword argument `class_weights=None` first, and the options of the loss
as further keyword arguments. `loss_check.check_loss` checks a loss on a few pixels, as the
training step does when it is built.
"""

from fcn_jax.training.losses.base import Loss, PixelLoss, RankedLoss
from fcn_jax.training.losses.build import WeightedLosses, build_losses, takes_class_weights
from fcn_jax.training.losses.overlap import Dice, GeneralizedDice, Jaccard, Tversky
from fcn_jax.training.losses.pixel import CrossEntropy, Focal
from fcn_jax.training.losses.ranked import LovaszSoftmax, OnlineHardExamples, TopK

__all__ = [
    "CrossEntropy",
    "Dice",
    "Focal",
    "GeneralizedDice",
    "Jaccard",
    "Loss",
    "LovaszSoftmax",
    "OnlineHardExamples",
    "PixelLoss",
    "RankedLoss",
    "TopK",
    "Tversky",
    "WeightedLosses",
    "build_losses",
    "takes_class_weights",
]
