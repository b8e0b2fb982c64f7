"""LeNet, live: a page where a digit is drawn, and every layer's maps change with it.

After the visualisation of Harley (2015), An Interactive Node-Link Visualization of Convolutional
Neural Networks. On the strip, which is wider than a digit, the same network reads a string
(Matan et al. 1991). The network is the one of `examples/digits.py`.
"""

import base64
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from fcn_jax.errors import UserError
from fcn_jax.models.convolutionalize import Classifier
from fcn_jax.models.recording import record_maps
from fcn_jax.pretrained import flatten
from fcn_jax.pretrained.weights import replace_leaves
from fcn_jax.serve.app import API_HANDLERS, HEADERS, STATIC, health_route, static_route
from fcn_jax.serve.uploads import Limits, RequestError, read_body
from fcn_jax.serve.worker import Worker
from fcn_jax.terminal.atomic_files import write_whole

HEIGHT_PX = 32
NO_DIGIT = 10
WIDTHS_PX = (32, 160)
"""Of the pad for one digit, and of the strip."""

LAYERS = {
    "backbone.conv1": "conv1: 5×5",
    "backbone.conv1, relu": "conv1 after the activation",
    "backbone.conv1, pooling": "pool1: 2×2",
    "backbone.conv2": "conv2: 5×5",
    "backbone.conv2, relu": "conv2 after the activation",
    "backbone.conv2, pooling": "pool2: 2×2",
    "layers.0": "fc1 as a 5×5 convolution",
    "layers.2": "fc2 as a 1×1 convolution",
}
"""The maps that the page shows, with their titles."""

STRINGS, STEPS = 700, 700
"""Strings drawn, and steps of training: half a minute on a core."""


class DigitReader:
    """LeNet as a fully convolutional network, with the maps of its layers."""

    def __init__(self, network: Classifier):
        self.grid = network.grid
        graph, state = nnx.split(network)
        names: list[str] = []

        @jax.jit
        def run(state: Any, image: jax.Array) -> tuple[list[jax.Array], jax.Array]:
            model = nnx.merge(graph, state)
            maps, scores = record_maps(model, lambda: model(image))
            names[:] = [name for name in maps if name in LAYERS]
            return [maps[name].values[0] for name in names], scores[0, 0]

        self._names, self._run, self._state = names, run, state

    def __call__(self, image: np.ndarray) -> dict[str, Any]:
        """Reads an image, uint8 (32, w): white digits on black or black on white.

        Returns:
            For JSON: the maps of the layers in bytes of base64, channel by channel, and by column
            of windows the probability of each digit and of none, and the evidence of a digit: the
            logarithm of their ratio, exact where the rounded probabilities tie.
        """
        maps, scores = self._run(self._state, jnp.asarray(image)[None, :, :, None])
        probabilities, scores = np.asarray(jax.nn.softmax(scores)), np.asarray(scores)
        evidence = np.logaddexp.reduce(scores[:, :NO_DIGIT], axis=-1) - scores[:, NO_DIGIT]
        columns = self.grid.stride * np.arange(len(probabilities)) + self.grid.offset
        return {
            "layers": [
                _layer(LAYERS[name], np.asarray(values))
                for name, values in zip(self._names, maps, strict=True)
            ],
            "probabilities": probabilities.round(4).tolist(),
            "evidence": evidence.tolist(),
            "columns": columns.tolist(),
        }

    def warm_up(self) -> None:
        """Compiles the network for both widths."""
        for width in WIDTHS_PX:
            self(np.zeros((HEIGHT_PX, width), np.uint8))


def _layer(title: str, values: np.ndarray) -> dict[str, Any]:
    """Describes a map (h, w, c), whose channels share a scale that contains zero."""
    low, high = min(0.0, float(values.min())), max(float(values.max()), 1e-6)
    scaled = (255 * (values - low) / (high - low)).round().astype(np.uint8)
    height, width, channels = values.shape
    planes = np.ascontiguousarray(np.moveaxis(scaled, -1, 0))
    return {
        "title": title,
        "height": height,
        "width": width,
        "channels": channels,
        "low": low,
        "high": high,
        "planes": base64.b64encode(planes.tobytes()).decode("ascii"),
    }


def load_reader(path: Path) -> DigitReader:
    """Loads the network from a file, or trains it and writes the file.

    Raises:
        UserError: the examples are not there, or the file cannot be written.
    """
    try:
        from examples import digit_strings, digits
    except ModuleNotFoundError:
        raise UserError(
            "demo (=digits) uses examples/digits.py: start it in a clone of the repository"
        ) from None
    graph, state = _split(nnx.eval_shape(lambda: digits.DigitClassifier(rngs=nnx.Rngs(0))))
    expected: tuple[Any, Any] = nnx.to_pure_dict(state), {}
    shapes = {name: leaf.shape for name, leaf in flatten(expected).items()}
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError):
        tensors = {}
    if {name: tensor.shape for name, tensor in tensors.items()} != shapes:
        images, labels = digit_strings.draw_windows(STRINGS, np.random.default_rng(0))
        classifier = digits.train(images, labels, steps=STEPS, seed=0)
        trained = flatten((nnx.to_pure_dict(_split(classifier)[1]), {}))
        tensors = {name: np.asarray(value) for name, value in trained.items()}
        write_whole(path, lambda part: save_file(tensors, part))
    nnx.replace_by_pure_dict(state, replace_leaves(expected, tensors)[0])
    return DigitReader(digits.fully_convolutional(nnx.merge(graph, state)))


def _split(classifier: nnx.Module) -> Any:
    return nnx.split(classifier)


def make_digits_app(reader: DigitReader, limits: Limits) -> Starlette:
    """Makes the application of the demo; `app.state.worker` computes its answers."""
    worker = Worker(limits.waiting, limits.time_limit_s)

    async def page(request: Request) -> Response:
        headers = {**HEADERS, "Cache-Control": "no-cache"}
        return FileResponse(STATIC / "digits.html", headers=headers)

    async def read(request: Request) -> Response:
        with worker.place():
            data = await read_body(request, limits)
            sizes = [HEIGHT_PX * width for width in WIDTHS_PX]
            if len(data) not in sizes:
                raise RequestError(
                    400, f"the body must be {sizes[0]} or {sizes[1]} bytes: rows of grey values"
                )
            image = np.frombuffer(data, np.uint8).reshape(HEIGHT_PX, -1)
            return JSONResponse(await worker.run(lambda: reader(image), request.is_disconnected))

    app = Starlette(
        routes=[
            Route("/", page),
            Route("/v1/digits", read, methods=["POST"]),
            health_route(worker),
            static_route(),
        ],
        exception_handlers=API_HANDLERS,
    )
    app.state.worker = worker
    return app
