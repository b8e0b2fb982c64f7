"""Exports compute what the network computes here, in ONNX Runtime, PyTorch and JAX alone."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from fcn_jax.errors import UserError
from fcn_jax.formats import onnx_file, stablehlo
from fcn_jax.models import tape as tapes
from fcn_jax.models.fcn import FCN
from fcn_jax.models.feature_map import FeatureMap
from fcn_jax.models.pure_model import PureModel
from fcn_jax.models.tape import UnknownLayerError, record
from tests.formats.networks import (
    SIZES,
    EveryLayer,
    compare,
    every_layer,
    image_of,
    of_config,
    tensors_of,
)

Run = Callable[[np.ndarray], Mapping[str, np.ndarray]]

NETWORKS: dict[str, Callable[[], PureModel]] = {
    "learned": lambda: every_layer("learned", skips=1),
    "fixed": lambda: every_layer("fixed", skips=1, score_scales=(1, 0.5)),
    "interpolate": lambda: every_layer(
        "interpolate", skips=0, hidden=True, auxiliary=True, context_features=6
    ),
    "unet": lambda: of_config(backbone="unet", decoder="unet", features=(8, 12, 16)),
    "mirrored": lambda: of_config(
        backbone="unet", decoder="unet", features=(8, 12, 16), padding="valid", norm="group"
    ),
    "instance": lambda: of_config(
        backbone="unet", decoder="unet", features=(4, 6), norm="instance"
    ),
}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> PureModel:
    return NETWORKS[request.param]()


def in_onnxruntime(network: PureModel) -> Run:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnx", reason="onnx is not installed")
    channels = network.preprocessing.channels
    metadata = {"class_names": "[]"}
    data = onnx_file.build(
        record(network), tensors_of(network), channels=channels, metadata=metadata
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, options)
    assert session.get_modelmeta().custom_metadata_map == metadata
    names = [output.name for output in session.get_outputs()]

    def run(image: np.ndarray) -> dict[str, np.ndarray]:
        outputs = dict(zip(names, session.run(None, {"image": image}), strict=True))
        logits = {}
        for name in network.label_maps:
            ending = f"_{name}" if name else ""
            logits[name] = np.moveaxis(outputs[f"logits{ending}"], 1, -1)
            classes = outputs[f"classes{ending}"]
            assert classes.dtype == np.uint8
            np.testing.assert_array_equal(classes, logits[name].argmax(-1))
        return logits

    return run


def in_pytorch(torch: ModuleType, network: PureModel, folder: Path) -> Run:
    from fcn_jax.formats import fcn_torch

    save_file(tensors_of(network), folder / "model.safetensors")
    (folder / "graph.json").write_text(json.dumps(dataclasses.asdict(record(network))))
    peer = fcn_torch.load(folder)

    def run(image: np.ndarray) -> dict[str, np.ndarray]:
        with torch.no_grad():
            return {k: np.moveaxis(x.numpy(), 1, -1) for k, x in peer(torch.tensor(image)).items()}

    return run


def test_onnx(network: PureModel) -> None:
    compare(network, in_onnxruntime(network))


def test_pytorch(torch: ModuleType, network: PureModel, tmp_path: Path) -> None:
    compare(network, in_pytorch(torch, network, tmp_path))


def test_images_of_the_usual_sizes_and_several_label_maps() -> None:
    network = every_layer("fixed", {"a": 5, "b": 3}, skips=0)
    sizes = ((375, 500), (500, 375))
    compare(network, in_onnxruntime(network), sizes)


def test_a_batch_of_images(network: PureModel) -> None:
    run = in_onnxruntime(network)
    images = [image_of((9, 13)), image_of((9, 13))[:, ::-1]]
    together = run(np.concatenate(images))[""]
    for index, image in enumerate(images):
        np.testing.assert_allclose(run(image)[""][0], together[index], rtol=1e-4, atol=1e-4)


PROGRAM = """
import sys
import jax, numpy as np
folder, names, *sizes = sys.argv[1:]
for name in names.split(","):
    with open(f"{folder}/{name}.stablehlo", "rb") as file:
        program = jax.export.deserialize(bytearray(file.read()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    for size in sizes:
        image = np.load(f"{folder}/{size}.npy")
        np.save(f"{folder}/{name}_{size}.npy", program.call(image)[""])
assert not any(name.startswith("fcn_jax") for name in sys.modules)
"""


def test_stablehlo_in_a_process_without_fcn_jax(tmp_path: Path) -> None:
    pytest.importorskip("flatbuffers", reason="flatbuffers is not installed")
    networks = {name: NETWORKS[name]() for name in ("learned", "mirrored")}
    for name, network in networks.items():
        data = stablehlo.build(record(network), tensors_of(network), channels=3)
        (tmp_path / f"{name}.stablehlo").write_bytes(data)
    images = {f"{h}x{w}": image_of((h, w)) for h, w in SIZES}
    for size, image in images.items():
        np.save(tmp_path / f"{size}.npy", image)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), ",".join(networks), *images]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr

    for name, network in networks.items():
        classes = jax.jit(classes_of(network))
        for size, image in images.items():
            found = np.load(tmp_path / f"{name}_{size}.npy")
            assert found.dtype == np.uint8
            np.testing.assert_array_equal(found, classes(image))


def classes_of(network: PureModel) -> Callable[[Any], Any]:
    return lambda image: network(network.variables, image)[0]["logits"].argmax(-1)


@pytest.mark.parametrize("name", ["fixed", "interpolate"])
def test_the_program_of_stablehlo_has_our_logits(name: str) -> None:
    network = NETWORKS[name]()
    tape, tensors = record(network), tensors_of(network)
    compare(network, jax.jit(lambda image: stablehlo.run(tape, tensors, image)))


def test_what_is_no_layer_is_named() -> None:
    class Own(EveryLayer):
        def __call__(self, image: FeatureMap, **options: Any) -> dict[int, FeatureMap]:
            features = super().__call__(image, **options)
            return features | {2: features[2].map(own_function)}

    class Unmarked(EveryLayer):
        def __call__(self, image: FeatureMap, **options: Any) -> dict[int, FeatureMap]:
            features = super().__call__(image, **options)
            doubled = dataclasses.replace(features[2], values=features[2].values * 2)
            return features | {2: doubled}

    def own_function(values: jax.Array) -> jax.Array:
        return values**2

    for kind, message in ((Own, "own_function of single positions"), (Unmarked, "no layer of fcn")):
        rngs = nnx.Rngs(0)
        with pytest.raises(UnknownLayerError, match=message):
            record(PureModel(FCN(kind(rngs), 5, skips=0, rngs=rngs)))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    tape = tapes.Tape((), {})
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(UserError, match="needs the package onnx: pip install onnx"):
        onnx_file.build(tape, {}, channels=3, metadata={})
    with pytest.raises(UserError, match="needs the package flatbuffers: pip install flatbuffers"):
        stablehlo.build(tape, {}, channels=3)
