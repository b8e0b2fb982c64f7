"""Runs a backbone and records the calls of its layers.

`backbone_program` compiles a whole backbone, `compiled_layers` its layers one by one, and
`first_problem` finds the first layer whose outputs differ between two runs.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fcn_jax.models.backbones.contract import spatial_axes
from fcn_jax.models.feature_map import FeatureMap
from fcn_jax.models.recording import Call, modules_by_name, record_calls
from fcn_jax.testing.report import Layer

UNOPTIMISED = {"xla_backend_optimization_level": 0}
"""Compiler options of programs that run a few times: several times as fast to compile."""

Problem = Callable[[FeatureMap, FeatureMap], str | None]
"""Compares two feature maps; returns what is wrong with the second, if anything."""


def backbone_program(graph: Any) -> Any:
    """Compiles a backbone: (state, pixels) -> features by stage, calls, and the state after it."""

    def run(state: Any, pixels: FeatureMap, *, train: bool = False, record: bool = False) -> Any:
        model = nnx.merge(graph, state)
        with contextlib.ExitStack() as stack:
            calls = stack.enter_context(record_calls(model)) if record else []
            features = model(pixels, train=train)
        return features, calls, nnx.state(model)

    return jax.jit(run, static_argnames=("train", "record"), compiler_options=UNOPTIMISED)


def derivatives(module: Any, x: FeatureMap, options: Mapping[str, Any]) -> Any:
    """Returns a loss of a module's output, its gradient in the input, and the state after it."""
    graph, state = nnx.split(module)

    def loss(values: jax.Array, state: Any) -> Any:
        module = nnx.merge(graph, state)
        outputs = module(dataclasses.replace(x, values=values), **options)
        outputs = outputs.values() if isinstance(outputs, dict) else [outputs]
        return sum(jnp.sin(y.values).sum() for y in outputs), nnx.state(module)

    def run(values: jax.Array, state: Any) -> Any:
        # Statistics can be updated within a gradient only if it is taken in them as well.
        differentiated = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        (value, after), (gradient, _) = differentiated(values, state)
        return {"loss": value, "gradient": gradient, "state": nnx.to_pure_dict(after)}

    return jax.jit(run, compiler_options=UNOPTIMISED)(x.values, state)


def first_problem(
    problem: Problem, expected: list[Call], found: list[Call]
) -> tuple[str, str | None]:
    """Returns where two runs differ first, in a layer or between two, and how."""
    previous = "the image"
    for a, b in zip(expected, found, strict=True):
        before = problem(a.input, b.input)
        if before:
            return f"what is between {previous} and {b.name}", before
        what = problem(a.output, b.output)
        if what:
            return b.name, what
        previous = b.name
    return f"what is after {previous}", None


def compiled_layers(model: Any) -> list[Layer]:
    """Compiles the layers that a backbone calls, each by itself; equal ones once."""
    graph, state = nnx.split(model)
    modules = modules_by_name(model)
    size = (64,) * spatial_axes(model)
    pixels = FeatureMap(jnp.zeros((1, *size, model.preprocessing.channels)))
    _, calls, _ = backbone_program(graph).eval_shape(state, pixels, record=True)
    layers = []
    seconds: dict[str, float] = {}
    for call in calls:
        if call.depth:
            continue
        inner, weights = nnx.split(modules[call.name])

        def run(weights: Any, x: FeatureMap, inner: Any = inner, call: Call = call) -> Any:
            return nnx.merge(inner, weights)(x, **dict(call.keywords))

        program = repr((inner, call.keywords, call.input))
        if program not in seconds:
            started = time.perf_counter()
            jax.jit(run).lower(weights, call.input).compile()
            seconds[program] = time.perf_counter() - started
        kind = type(modules[call.name]).__name__
        layers.append(Layer(call.name, kind, call.output.values.shape[1:], seconds[program]))
    return layers
