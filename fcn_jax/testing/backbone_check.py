"""Checks that a backbone keeps its contract: `check_backbone`."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fcn_jax.models.backbones.contract import (
    Backbone,
    abstract_features,
    check_contract,
    check_no_random_state,
    parameters,
    spatial_axes,
)
from fcn_jax.models.feature_map import FeatureMap, TilePosition
from fcn_jax.models.layers import BatchNorm
from fcn_jax.models.remat import modules_with_blocks, remat_blocks
from fcn_jax.testing.recording import (
    Problem,
    backbone_program,
    compiled_layers,
    derivatives,
    first_problem,
    modules_by_name,
)
from fcn_jax.testing.report import BackboneReport

SIZE = (45, 21, 13)
"""Size of an image that no stride divides, on each axis."""

TRAINING_CANVAS = (128, 96, 32)
"""Large enough for statistics at stride 32."""

BEYOND = 19
"""Part of a canvas beyond such an image, on each axis: at stride 32 it has a position there."""

TOLERANCE = 1e-4
"""Largest difference, as a share of the largest value, where rounding has not been measured."""

ROUNDING = 10
"""Largest difference of features, relative to the effect of the last bit of the pixels."""

EXACT_LAYERS = {
    nnx.BatchNorm: "BatchNorm of fcn_jax.models.layers",
    nnx.Conv: "Conv of fcn_jax.models.layers",
    nnx.GroupNorm: "GroupNorm of fcn_jax.models.layers",
}
"""Layers of flax that also see the canvas outside the image -> what to use instead."""


def check_backbone(
    make: Callable[..., Backbone], *, padding: str = "same", compile_times: bool = True
) -> BackboneReport:
    """Checks that a backbone keeps the contract of `models/backbones/contract.py`.

    - positions and grids: see `check_contract`;
    - training: the canvas outside the images changes neither features nor statistics;
    - mixed sizes: on a larger canvas, next to another image, an image has the features that it has
      alone;
    - tiles: parts of an image, cut at a multiple of the strides, have the features of the whole;
    - receptive fields: NaNs in the image spread to the positions that should depend on them, and
      to no others;
    - remat: blocks that run again in the backward pass have the same results and gradients.

    Differences count as rounding if they are at most 10 times as large as those from changing the
    pixels in their last bit.

    Args:
        make: the factory, such as the class: it is called with `rngs`.
        padding: see `check_contract`.
        compile_times: whether to compile every layer by itself, and report the time.

    Raises:
        ValueError: the backbone has other positions, grids or channels than it must have.
        AssertionError: a layer computes something else than it must.
    """
    model: Any = random_weights(lambda: make(rngs=nnx.Rngs(0)))
    check_contract(model, padding=padding)
    norms = [module for _, module in nnx.iter_modules(model) if isinstance(module, BatchNorm)]
    if norms and "axis_name" not in parameters(make):
        raise ValueError(
            f"{type(model).__name__} has batch normalisation, but no argument axis_name: its "
            "statistics would be those of one device"
        )
    for norm in norms:
        norm.momentum = 0.0  # the statistics of one batch suffice
    stages = [f"{stage}: {x.stride}·i + {x.offset:g}" for stage, x in model.grids.items()]
    checks = {"positions and grids": ", ".join(stages)}
    with jax.default_matmul_precision("highest"):
        layers = compiled_layers(model) if compile_times else []
        checks |= _Check(model).results()
    return BackboneReport(type(model).__name__, checks, layers)


def random_weights(make: Callable[[], Any]) -> Any:
    """Builds a module with random values in place of its initial ones, some of which are 0 or 1.

    Arrays of several axes are drawn as He et al. (2015) initialise convolutions. Biases and means
    are small, and other vectors between 0.5 and 1.5.
    """
    # Shapes alone: every initializer would be compiled for every shape.
    abstract = nnx.eval_shape(make)
    check_no_random_state(abstract)
    graph, state = nnx.split(abstract)
    random = np.random.default_rng(0)

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if leaf.ndim > 1:
            values = random.standard_normal(leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))
        elif path[-1].key in ("bias", "mean"):
            values = 0.1 * random.standard_normal(leaf.shape)
        else:
            values = random.uniform(0.5, 1.5, leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    values = jax.tree_util.tree_map_with_path(draw, nnx.to_pure_dict(state))
    nnx.replace_by_pure_dict(state, values)
    return nnx.merge(graph, state)


class _Check:
    """The checks of one backbone, in an order in which they share programs and results."""

    def __init__(self, model: Any):
        self._model = model
        self._name = type(model).__name__
        graph, self._state = nnx.split(model)
        self._program = backbone_program(graph)
        self._random = np.random.default_rng(0)
        channels, size = model.preprocessing.channels, SIZE[: spatial_axes(model)]
        fields = [x.field for x in abstract_features(model, (1, *size, channels)).values()]
        self._is_bounded = all(field.is_bounded for field in fields)
        self._alignment = math.lcm(*(field.alignment for field in fields))
        height = size[0] + BEYOND
        if self._is_bounded:  # some positions of a part must depend on nothing outside of it
            reach = max(max(-field.first, field.last) for field in fields)
            stride = max(field.stride for field in fields)
            height = max(height, self._alignment + int(reach) + 2 * stride)
        self._canvas = (height, *(length + BEYOND for length in size[1:]))
        self._image, self._large = self._noise(*size), self._noise(*self._canvas)
        self._tolerance = dict.fromkeys(model.channels, TOLERANCE)
        self._limit = TOLERANCE
        self._largest = 0.0
        self._check = ""

    def results(self) -> dict[str, str]:
        """Runs all checks: what was checked -> what was found."""
        checks: dict[str, Callable[[], str | None]] = {
            "training": self._training,
            "mixed sizes": self._mixed_sizes,
            "tiles": self._tiles,
            "receptive fields": self._receptive_fields,
            "remat": self._remat,
        }
        results = {}
        for self._check, check in checks.items():
            self._largest = 0.0
            results[self._check] = check() or f"differences up to {self._largest:.0e}"
        return results

    def _training(self) -> str | None:
        if not jax.tree.leaves(nnx.state(self._model, nnx.BatchStat)):
            return "no BatchNorm"
        # An image has the same statistics if it is there twice as if it is there once, next to a
        # place without an image.
        canvas = TRAINING_CANVAS[: spatial_axes(self._model)]
        image = self._noise(*(length - BEYOND for length in canvas))
        twice = _placed([image, image], canvas, 100.0)
        once = _placed([image, np.zeros((0,) * len(canvas) + image.shape[-1:])], canvas, -3.0)
        nearly = _placed([np.nextafter(image, np.inf)] * 2, canvas, 100.0)
        self._measure_rounding(twice, nearly, train=True)
        (_, _, self._state), _ = self._compare(self._equal, twice, once, train=True)
        # With statistics of their own, features keep their size from layer to layer.
        return None

    def _mixed_sizes(self) -> None:
        alone, nearly = (
            FeatureMap(jnp.asarray(image[None]))
            for image in (self._image, np.nextafter(self._image, np.inf))
        )
        self._measure_rounding(alone, nearly)
        whole = _placed([self._image, self._large], self._canvas, 100.0)
        sizes = jnp.asarray(whole.valid)
        self._whole = dataclasses.replace(whole, tile=TilePosition(jnp.zeros_like(sizes), sizes))
        self._compare(self._equal, alone, self._whole)

    def _tiles(self) -> str | None:
        if not self._is_bounded:
            return "not checked: features depend on the whole image"
        height, start = self._canvas[0], self._alignment
        parts = _placed([self._large[start:], self._large[:-start]], self._canvas, 100.0)
        upper = [0] * len(self._canvas)
        corners, sizes = [[start, *upper[1:]], upper], [self._canvas] * 2
        tile = TilePosition(jnp.asarray(corners, jnp.int32), jnp.asarray(sizes, jnp.int32))

        def problem(whole: FeatureMap, tile: FeatureMap) -> str | None:
            field = whole.field
            if not field.is_bounded or tile.valid is None:
                return None
            # The positions of the lower part that depend on no row above it, and those of the
            # upper part that depend on none below it.
            shift, count = start // field.stride, int(tile.valid[0, 0])
            first = max(0, -int(field.first // field.stride))
            last = max(0, int((height - start - 1 - field.last) // field.stride) + 1)
            return self._differ(
                whole.values[1, first + shift : count + shift], tile.values[0, first:count]
            ) or self._differ(whole.values[1, :last], tile.values[1, :last])

        self._compare(problem, self._whole, dataclasses.replace(parts, tile=tile))
        return None

    def _receptive_fields(self) -> str | None:
        if not self._is_bounded:
            return "not checked: features depend on the whole image"
        stage = max(self._model.channels)
        coarsest = self._run(self._whole)[0][stage]
        field = coarsest.field
        # Positions of a stage finer than the alignment do not all see as far: the last one of a
        # period sees the first row of its field, the first one the last row.
        period = field.alignment // field.stride
        last_place = coarsest.spatial[0] // period * period - 1
        # It depends on no row above `top`, the first position on none below `bottom`.
        top, bottom = field.stride * last_place + int(field.first), int(field.last)
        rows = np.arange(self._canvas[0]).reshape(-1, *[1] * len(self._canvas))

        def hidden(top: int, bottom: int) -> FeatureMap:
            values = np.where(np.stack([rows < top, rows > bottom]), np.nan, self._large)
            sizes = jnp.asarray([self._canvas] * 2, jnp.int32)
            return dataclasses.replace(
                self._whole, values=jnp.asarray(values, jnp.float32), valid=sizes
            )

        def problem(_: FeatureMap, x: FeatureMap) -> str | None:
            field = x.field
            if not field.is_bounded or x.valid is None:
                return None
            pixel = field.stride * np.arange(x.spatial[0])
            may_be = np.stack([pixel + field.first < top, pixel + field.last > bottom])
            if not (_rows_with_nan(x) & ~may_be).any():
                return None
            return (
                f"depends on pixels outside its receptive field, {field.stride}·i "
                f"{field.first:+g} … {field.stride}·i {field.last:+g}"
            )

        self._compare(problem, hidden(top, bottom), hidden(top, bottom))
        # With one more row hidden, both positions depend on a hidden one; or neither does, if the
        # windows are wider on the other axis.
        nearly = self._run(hidden(top + 1, bottom - 1))[0][stage]
        is_nan = _rows_with_nan(nearly)
        if is_nan[0, last_place] != is_nan[1, 0]:
            side = "first" if is_nan[1, 0] else "last"
            raise AssertionError(
                f"{self._check}: position i of stage {stage} of {self._name} does not depend on "
                f"the {side} row of its receptive field, so it is not centred where grids[{stage}] "
                "has it"
            )
        return f"{field.last - field.first + 1:g} pixels at stage {stage}"

    def _remat(self) -> str | None:
        """Compares the first block of each class with itself under remat."""
        modules = modules_with_blocks(self._model)
        if not modules:
            return "no blocks"
        pixels = FeatureMap(jnp.asarray(self._image[None]))
        _, calls, _ = self._program.eval_shape(self._state, pixels, record=True)
        calls_by_name = {call.name: call for call in calls}
        names = {id(module): name for name, module in modules_by_name(self._model).items()}
        for module in {type(module): module for module in reversed(modules)}.values():
            name, x, options = names[id(module)], pixels, {"train": True}
            if name:  # not the backbone itself
                call = calls_by_name[name]
                x = FeatureMap(jnp.asarray(self._noise(*call.input.values.shape)))
                options = {key: key == "train" or value for key, value in call.keywords}
            expected = derivatives(module, x, options)
            remat_blocks(module)
            self._same(expected, derivatives(module, x, options), "differs under remat", name)
        return None

    def _run(self, pixels: FeatureMap, *, train: bool = False, record: bool = False) -> Any:
        return jax.device_get(self._program(self._state, pixels, train=train, record=record))

    def _compare(self, problem: Problem, *inputs: FeatureMap, train: bool = False) -> Any:
        """Runs the backbone on two inputs and compares the features.

        Returns:
            Features, calls and state of both.

        Raises:
            AssertionError: there is a problem; names the first layer that has it.
        """
        results = [self._run(pixels, train=train) for pixels in inputs]
        for stage in self._model.channels:
            self._limit = self._tolerance[stage]
            found = problem(*(features[stage] for features, *_ in results))
            if found:
                recorded = [self._run(pixels, train=train, record=True) for pixels in inputs]
                where, what = first_problem(problem, *(calls for _, calls, _ in recorded))
                raise AssertionError(
                    f"{self._check}: {where} {what or found} (seen in stage {stage} of "
                    f"{self._name}){self._remedy(where)}"
                )
        return results

    def _remedy(self, where: str) -> str:
        """Returns what to write instead, if what differs is no layer of this package."""
        if not where.startswith("what is "):
            return ""
        for name, module in modules_by_name(self._model).items():
            if type(module) in EXACT_LAYERS:
                kind = type(module).__name__
                return (
                    f"; {name} is an nnx.{kind}, which does not know where an image ends: use "
                    f"{EXACT_LAYERS[type(module)]}"
                )
        return "; x.map is for functions of one position, spatial_mean for means over the image"

    def _same(self, expected: Any, found: Any, problem: str, name: str = "") -> None:
        """Compares two trees of arrays."""
        self._limit = TOLERANCE
        leaves = jax.tree.leaves_with_path(jax.device_get(expected))
        for (path, a), b in zip(leaves, jax.tree.leaves(jax.device_get(found)), strict=True):
            difference = self._differ(a, b)
            if difference:
                where = jax.tree_util.keystr(path, simple=True, separator=".")
                raise AssertionError(
                    f"{self._check}: {name or self._name}: {where} {problem}: it {difference}"
                )

    def _measure_rounding(self, *inputs: FeatureMap, train: bool = False) -> None:
        """Sets the tolerance of every stage, from inputs that differ in their last bits."""
        results = [self._run(pixels, train=train)[0] for pixels in inputs]
        for stage in self._model.channels:
            a, b = (features[stage] for features in results)
            largest = max(np.abs(a.values[0]).max(), 1e-30)
            rounding = np.abs(b.values[0] - a.values[0]).max() / largest
            self._tolerance[stage] = max(1e-6, ROUNDING * float(rounding))

    def _equal(self, expected: FeatureMap, x: FeatureMap) -> str | None:
        """Compares the first images."""
        wanted, size = _size(expected), _size(x)
        if wanted != size:
            return f"has {size} positions instead of {wanted}"
        window = (0, *(slice(n) for n in size))
        return self._differ(expected.values[window], x.values[window])

    def _differ(self, expected: Any, found: Any) -> str | None:
        if expected.size == 0:
            return None
        difference = np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30)
        if difference <= self._limit:
            self._largest = max(self._largest, float(difference))
            return None
        return f"differs by {difference:.0e} of the largest value"

    def _noise(self, *shape: int) -> np.ndarray:
        if len(shape) == spatial_axes(self._model):
            shape = (*shape, self._model.preprocessing.channels)
        return self._random.standard_normal(shape).astype(np.float32)


def _placed(images: Sequence[np.ndarray], canvas: tuple[int, ...], outside: float) -> FeatureMap:
    """Places images (*n, c) at the start of canvases."""
    values = np.full((len(images), *canvas, images[0].shape[-1]), outside, np.float32)
    for place, image in zip(values, images, strict=True):
        place[tuple(map(slice, image.shape))] = image
    sizes = jnp.asarray([image.shape[:-1] for image in images], jnp.int32)
    return FeatureMap(jnp.asarray(values), sizes)


def _size(x: FeatureMap) -> tuple[int, ...]:
    """Returns the size of the first image on its canvas."""
    return x.spatial if x.valid is None else tuple(map(int, x.valid[0]))


def _rows_with_nan(x: FeatureMap) -> np.ndarray:
    """Returns which rows of each image have NaNs: bool (b, n), along the first spatial axis."""
    return np.isnan(np.asarray(x.values)).any(tuple(range(2, x.values.ndim)))
