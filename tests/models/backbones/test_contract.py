"""Building a network refuses a backbone that breaks the contract, and names stage and size."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import pytest
from flax import nnx

from fcn_jax.config import ModelConfig
from fcn_jax.models.backbones.contract import accepts, check_contract
from fcn_jax.models.backbones.preprocess import TORCHVISION, Preprocessing
from fcn_jax.models.build import abstract_model
from fcn_jax.models.fcn import FCN
from fcn_jax.models.feature_map import FeatureMap
from fcn_jax.models.geometry import PIXELS, Grid
from fcn_jax.models.layers import Conv, max_pool
from fcn_jax.registry import backbones as BACKBONES


class OneLayer(nnx.Module):
    """A backbone of one function, with the channels and grid that it claims."""

    def __init__(
        self,
        layer: Callable[[FeatureMap], FeatureMap],
        grid: Grid,
        *,
        channels: int = 5,
        stage: int | None = None,
    ):
        self.preprocessing = TORCHVISION
        self.layer = layer
        self.channels = {grid.stride: channels}
        self.grids = {grid.stride: grid}
        self.stage = stage or grid.stride

    def __call__(self, image: FeatureMap, **_: Any) -> dict[int, FeatureMap]:
        return {self.stage: self.layer(image)}


def conv(size: int, stride: int, padding: Any) -> Conv:
    return Conv(3, 5, (size, size), stride=stride, padding=padding, rngs=nnx.Rngs(0))


def stem(padding: Any) -> OneLayer:
    """The 4×4 patches of vision transformers and ConvNeXt."""
    return OneLayer(conv(4, 4, padding), PIXELS.after(4, 4, padding))


def test_an_unpadded_stem_loses_the_last_rows_and_is_refused() -> None:
    # 7 rows give one position, centred on 1.5, whose scores reach row 5: row 6 would stay zero.
    model = FCN(stem(0), 2, skips=0, rngs=nnx.Rngs(0))
    model.head.score4.kernel[...] = jnp.ones_like(model.head.score4.kernel)
    model.head.score4.bias[...] = jnp.ones(2)
    logits = model(jnp.full((1, 7, 8, 3), 9, jnp.uint8))
    assert not logits[0, 6].any()
    assert logits[0, 5].any()
    message = (
        r"stage 4 of OneLayer has 8×9 positions on an image of 33×36 pixels; expected 9×9, "
        r"ceil\(n / 4\)"
    )
    with pytest.raises(ValueError, match=message):
        check_contract(stem(0))
    check_contract(stem((0, 3)))


@pytest.mark.parametrize(
    ("layer", "grid"),
    [
        (lambda x: max_pool(conv(3, 1, 1)(x), 2, 2), Grid(2, 0.5)),
        (conv(3, 2, 0), Grid(2, 1.0)),
        (conv(7, 2, 2), Grid(2, 1.0)),
        # One position too many on 4 pixels.
        (conv(2, 2, 1), Grid(2, -0.5)),
        (conv(3, 1, (2, 1)), Grid(1, -1.0)),
    ],
)
def test_padding_that_does_not_add_up_to_the_window_less_one_is_refused(
    layer: Any, grid: Grid
) -> None:
    with pytest.raises(ValueError, match=rf"expected .*, ceil\(n / {grid.stride}\)"):
        check_contract(OneLayer(layer, grid))


@pytest.mark.parametrize(
    ("layer", "grid"),
    [
        (lambda x: max_pool(conv(3, 1, 1)(x), 2, 2, ceil=True), Grid(2, 0.5)),
        (lambda x: max_pool(conv(3, 1, 1)(x), 3, 2, 1), Grid(2, 0.0)),
        (conv(6, 1, (2, 3)), Grid(1, 0.5)),
        (conv(7, 2, 3), Grid(2, 0.0)),
    ],
)
def test_padding_that_adds_up_is_accepted(layer: Any, grid: Grid) -> None:
    check_contract(OneLayer(layer, grid))


def test_features_that_are_not_centred_on_the_grid_are_refused() -> None:
    message = r"stage 4 of OneLayer is centred on pixel 4·i \+ 1.5 by its layers, and on 4·i \+ 0 "
    with pytest.raises(ValueError, match=message):
        check_contract(OneLayer(conv(4, 4, (0, 3)), Grid(4)))


def test_an_operation_that_does_not_report_its_window_is_refused() -> None:
    def every_second(x: FeatureMap) -> FeatureMap:
        return FeatureMap(x.values[:, ::2, ::2], x.valid)

    with pytest.raises(ValueError, match=r"centred on pixel 1·i \+ 0 by its layers, and on 2·i"):
        check_contract(OneLayer(every_second, Grid(2), channels=3))


def test_other_stages_or_features_than_claimed_are_refused() -> None:
    with pytest.raises(ValueError, match=r"stage 2 of OneLayer has 5 features; channels\[2\] is 6"):
        check_contract(OneLayer(conv(3, 2, 1), Grid(2), channels=6))
    with pytest.raises(ValueError, match=r"returns the stages \[3\], but has channels of \[2\]"):
        check_contract(OneLayer(conv(3, 2, 1), Grid(2), stage=3))


def test_padding_of_the_image_must_reach_every_pixel() -> None:
    def padded(border: int) -> OneLayer:
        layer = conv(5, 4, border)
        return OneLayer(layer, PIXELS.after(5, 4, border))

    check_contract(padded(20), padding="paper")
    with pytest.raises(ValueError, match=r"expected 8×9, to reach every pixel"):
        check_contract(padded(0), padding="paper")


def test_a_network_is_checked_when_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(*, preprocessing: Preprocessing = TORCHVISION, rngs: nnx.Rngs) -> OneLayer:
        return stem(0)

    monkeypatch.setattr(BACKBONES, "_registered", {"stem": make})
    with pytest.raises(ValueError, match=r"stage 4 of OneLayer has 8×9 positions"):
        abstract_model(ModelConfig(backbone="stem", skips=0), 2)


@pytest.mark.parametrize(
    "name", [name for name in BACKBONES.names if accepts(BACKBONES[name], "padding", "paper")]
)
def test_backbones_that_pad_the_image_keep_the_contract(name: str) -> None:
    abstract_model(ModelConfig(backbone=name, padding="paper", skips=0), 2, axis_name="data")
