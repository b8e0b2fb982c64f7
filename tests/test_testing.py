"""`check_backbone` accepts every backbone, and names a layer that breaks the contract."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from fcn_jax.models.backbones import resnet
from fcn_jax.models.backbones.contract import parameters
from fcn_jax.models.backbones.lenet import LeNet
from fcn_jax.models.backbones.preprocess import TORCHVISION
from fcn_jax.models.backbones.small import SmallNet
from fcn_jax.models.feature_map import FeatureMap
from fcn_jax.models.geometry import Grid, Window
from fcn_jax.models.layers import BatchNorm, Conv, max_pool, relu
from fcn_jax.models.remat import remat_block
from fcn_jax.registry import backbones
from fcn_jax.testing import check_backbone


@pytest.fixture
def shallow_resnets(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most two blocks in each stage of a ResNet: the later ones are like the second."""
    for depth, blocks in resnet.DEPTHS.items():
        monkeypatch.setitem(resnet.DEPTHS, depth, tuple(min(2, count) for count in blocks))


def narrow(factory: Any, **arguments: Any) -> Any:
    """The factory with few features in fully connected layers, where it has any."""
    if "fc_features" in parameters(factory):
        arguments["fc_features"] = 16
    return functools.partial(factory, **arguments)


ALIKE = ("vgg16_bn", "resnet34", "resnet101", "resnet152", "resnet101c")
"""Built from the blocks of other backbones, which are checked by default."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.long if name in ALIKE else [])
        for name in backbones.names
    ],
)
def test_every_backbone_keeps_the_contract(name: str, shallow_resnets: None) -> None:
    report = check_backbone(narrow(backbones[name]), compile_times=False)
    print(report)
    for check in ("training", "mixed sizes", "remat"):
        assert "differences" in report.checks[check] or "no " in report.checks[check]


def test_a_backbone_that_pads_the_image_by_100_keeps_it() -> None:
    make = narrow(backbones["alexnet_caffe"], padding="paper")
    check_backbone(make, padding="paper", compile_times=False)


@pytest.mark.parametrize("name", ["googlenet", "lenet"])
def test_classifiers_geometries_keep_all_but_the_positions(name: str) -> None:
    make = LeNet if name == "lenet" else functools.partial(backbones[name], padding="original")
    check_backbone(make, padding="original", compile_times=False)
    with pytest.raises(ValueError, match=r"ceil\(n / \d\)"):
        check_backbone(make)


def test_a_dilated_resnet_keeps_the_contract(shallow_resnets: None) -> None:
    make = functools.partial(backbones["resnet50"], output_stride=8)
    assert "32: 8·i + 0" in check_backbone(make).checks["positions and grids"]


def test_the_report_is_a_table() -> None:
    report = check_backbone(functools.partial(SmallNet, features=(4, 6)))
    lines = str(report).splitlines()
    assert lines[0] == "SmallNet"
    assert lines[1] == "positions and grids  2: 2·i + 0, 4: 4·i + 0"
    assert lines[2].startswith("training             differences up to ")
    # Two 3×3 windows at stride 1 and two at stride 2: 1 + 2·(1 + 2 + 2 + 4).
    assert "receptive fields     19 pixels at stage 4" in lines
    assert lines[-3].split() == ["layer", "class", "output", "compiled", "in"]
    assert lines[-2].split()[:3] == ["block1", "Block", "32×32×4"]
    assert lines[-1].split()[:3] == ["block2", "Block", "16×16×6"]
    assert all(layer.compile_seconds > 0 for layer in report.layers)


# Backbones that break it


class Broken(nnx.Module):
    """Two convolutions, of stride 2 and 1, and something between them that tests replace."""

    def __init__(
        self,
        between: Callable[[FeatureMap], FeatureMap] = relu,
        second: Callable[..., Any] = Conv,
        *,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ):
        self.preprocessing = TORCHVISION
        self.first = Conv(3, 4, (3, 3), stride=2, rngs=rngs)
        self.between = between
        self.second = second(4, 5, (3, 3), rngs=rngs)
        self.channels, self.grids = {2: 5}, {2: Grid(2)}

    def __call__(
        self, image: FeatureMap, *, train: bool = False, keys: jax.Array | None = None
    ) -> dict[int, FeatureMap]:
        return {2: self.second(self.between(self.first(image)))}


def refused(message: str, *arguments: Any) -> None:
    with pytest.raises(AssertionError, match=message):
        check_backbone(functools.partial(Broken, *arguments), compile_times=False)


class Unmasked(Conv):
    """A convolution that also sees what is outside of the image."""

    def __call__(self, x: FeatureMap) -> FeatureMap:
        return dataclasses.replace(
            super().__call__(FeatureMap(x.values, field=x.field)), valid=x.valid
        )


class Uncounted(Conv):
    """A convolution of 5×5 that claims to be one of 3×3."""

    def __init__(self, in_features: int, features: int, _: Any, *, rngs: nnx.Rngs):
        super().__init__(in_features, features, (5, 5), rngs=rngs)

    def __call__(self, x: FeatureMap) -> FeatureMap:
        return x.windowed(super().__call__(x).values, [Window(3, 1, 1)] * 2)


def test_an_unbroken_one_passes() -> None:
    check_backbone(Broken, compile_times=False)


def test_a_layer_that_does_not_mask_is_named() -> None:
    refused(r"^mixed sizes: second differs by .* \(seen in stage 2 of Broken\)$", relu, Unmasked)


def test_a_pooling_without_infinities_is_named_by_its_neighbours() -> None:
    def pool(x: FeatureMap) -> FeatureMap:
        # Beyond the image there are zeros, where the image alone has no values at all.
        filled = FeatureMap(x.filled(), field=x.field)
        return dataclasses.replace(max_pool(filled, 3, 1, 1), valid=x.valid)

    refused(r"^mixed sizes: what is between first and second differs by", pool)


def test_sizes_that_are_not_kept_are_named() -> None:
    def forgotten(x: FeatureMap) -> FeatureMap:
        return FeatureMap(x.values, field=x.field)

    refused(r"^mixed sizes: what is between first and second has \(.*\) positions inst", forgotten)


def test_a_dependence_on_the_place_in_the_image_is_named() -> None:
    def place(x: FeatureMap) -> FeatureMap:
        rows = jnp.arange(x.spatial[0], dtype=jnp.float32)[:, None, None]
        return x.map(lambda values: values + rows)

    refused(r"^tiles: what is between first and second differs by", place)


def test_a_wider_window_than_claimed_is_named() -> None:
    refused(r"^tiles: second differs by", relu, Uncounted)


def test_a_narrower_window_than_claimed_is_refused() -> None:
    # Two rows instead of three, and no padding after them: the last of the window is not seen.
    def two_rows(x: FeatureMap) -> FeatureMap:
        values = jnp.pad(x.filled(), [(0, 0), (1, 0), (0, 0), (0, 0)])
        values = values[:, 1:] + values[:, :-1]
        return x.windowed(values, [Window(3, 1, 1)] * 2)

    refused(r"^receptive fields: position i of stage 2 .* the last row", two_rows)


def test_statistics_of_the_canvas_are_named() -> None:
    class Careless(BatchNorm):
        def __call__(self, x: FeatureMap, *, train: bool = False) -> FeatureMap:
            y = super().__call__(FeatureMap(x.values), train=train)
            return dataclasses.replace(x, values=y.values)

    class Normalised(Broken):
        def __init__(self, *, axis_name: str | None = None, rngs: nnx.Rngs):
            super().__init__(rngs=rngs)
            self.norm = Careless(5, axis_name=axis_name)

        def __call__(self, image: FeatureMap, *, train: bool = False, keys: Any = None) -> Any:
            return {2: self.norm(super().__call__(image)[2], train=train)}

    with pytest.raises(AssertionError, match=r"^training: norm differs by"):
        check_backbone(Normalised, compile_times=False)
    with pytest.raises(ValueError, match="has batch normalisation, but no argument axis_name"):
        check_backbone(lambda rngs: Normalised(rngs=rngs), compile_times=False)


@pytest.mark.parametrize(
    ("layer", "in_map", "message"),
    [
        (nnx.BatchNorm(4, rngs=nnx.Rngs(0)), True, "between is an nnx.BatchNorm, .* use BatchNorm"),
        (nnx.Conv(4, 4, (3, 3), rngs=nnx.Rngs(0)), True, "between is an nnx.Conv, .*: use Conv of"),
        (lambda values: values + values.mean((1, 2), keepdims=True), True, "spatial_mean"),
        (nnx.Conv(4, 4, (3, 3), rngs=nnx.Rngs(0)), False, r"layers of fcn_jax.models.layers take"),
        (jax.nn.relu, False, r"x\.map\(layer\)"),
        (lambda x: x + x, False, r"write add\(x, y\)"),
        (nnx.Dropout(0.5, rngs=nnx.Rngs(0)), True, r"between.rngs.* use dropout\(x, rate"),
    ],
)
def test_the_remedy_for_what_is_no_layer_is_named(layer: Any, in_map: bool, message: str) -> None:
    class Mapped(Broken):
        def __init__(self, *, axis_name: str | None = None, rngs: nnx.Rngs):
            super().__init__(layer, rngs=rngs)

        def __call__(self, image: FeatureMap, *, train: bool = False, keys: Any = None) -> Any:
            x = self.first(image)
            return {2: self.second(x.map(self.between) if in_map else self.between(x))}

    with pytest.raises((AssertionError, ValueError), match=message):
        check_backbone(Mapped, compile_times=False)


@pytest.mark.parametrize("returned", [lambda x: x.values, lambda x: None])
def test_a_stage_that_is_no_feature_map_is_refused(returned: Callable[..., Any]) -> None:
    class Unwrapped(Broken):
        def __call__(self, image: FeatureMap, *, train: bool = False, keys: Any = None) -> Any:
            return {2: returned(self.first(image))}

    with pytest.raises(ValueError, match="Unwrapped must return a FeatureMap for each stage"):
        check_backbone(Unwrapped, compile_times=False)


def test_a_missing_attribute_is_named() -> None:
    class Bare(Broken):
        def __init__(self, *, axis_name: str | None = None, rngs: nnx.Rngs):
            super().__init__(rngs=rngs)
            del self.preprocessing

    with pytest.raises(ValueError, match=r"Bare has no attribute preprocessing: .* must set self"):
        check_backbone(Bare, compile_times=False)


def test_a_block_that_computes_something_else_under_remat_is_named() -> None:
    class Block(nnx.Module):
        @remat_block
        def __call__(self, x: FeatureMap) -> FeatureMap:
            return x.map(lambda values: values * (2.0 if hasattr(self, "remat") else 1.0))

    refused(r"^remat: between: .* differs under remat", Block())
