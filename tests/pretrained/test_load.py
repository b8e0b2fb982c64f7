"""Weights of other projects get our names and layout, and every mismatch is reported."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict
from PIL import Image

from fcn_jax import pretrained
from fcn_jax.config import Config, ModelConfig
from fcn_jax.data.masks import read_mask
from fcn_jax.errors import UserError
from fcn_jax.inference.trained import load_weights
from fcn_jax.models.build import (
    QUICKLY_COMPILED,
    abstract_model,
    backbone_preprocessing,
    build_backbone,
    build_model,
)
from fcn_jax.models.pure_model import PureModel
from fcn_jax.pretrained import Provenance, flatten, model_file
from fcn_jax.pretrained.convert import convert, empty_variables
from fcn_jax.pretrained.source import from_fully_connected, from_iohw, from_oihw
from fcn_jax.pretrained.tables import caffe, sources
from fcn_jax.pretrained.tables import torchfcn as torchfcn_tables

WEIGHTS = Path(__file__).parents[3] / "shared" / "data" / "weights"


def shapes_of(backbone: str, channels: int = 3, **settings: Any):
    """Returns the (params, batch_stats) of a network of 3 classes, all zero."""
    config = Config(model=ModelConfig(backbone=backbone, **settings))
    return empty_variables(config, 3, channels)


def squeezenet_file(path: Path) -> dict[str, np.ndarray]:
    """Writes a file with Caffe's names and numbers drawn at random."""
    rng = np.random.default_rng(0)
    ours = flatten(shapes_of("squeezenet"))
    tensors = {}
    for name, (key, _) in caffe.squeezenet().table.items():
        shape = ours[name].shape
        oihw = (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape
        tensors[key] = rng.normal(size=oihw).astype(np.float32)
    np.savez(path, **tensors)
    return tensors


def initialize(variables, path):
    return load_weights(path).apply(variables)


@functools.cache
def names_of(backbone: str) -> set[str]:
    """Returns the names of a backbone's tensors, without check_contract's runs."""
    config = ModelConfig(backbone=backbone, padding="original")
    preprocessing = backbone_preprocessing(config)
    model = nnx.eval_shape(lambda: build_backbone(config, preprocessing, rngs=nnx.Rngs(0)))
    state = nnx.to_pure_dict(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat)))
    return {f"backbone/{name}" for name in flatten_dict(state, sep="/")}


@pytest.mark.parametrize("source", [*sources()], ids=lambda source: source.title)
def test_a_table_names_every_tensor_of_its_backbone_once(source):
    ours = names_of(source.backbone)
    absent = {n for n in ours if n.split("/")[1] in source.missing_layers}
    assert {n for n in source.table if n.startswith("backbone/")} == ours - absent
    keys = [key for key, _ in source.table.values()]
    assert len(set(keys)) == len(keys)


def test_a_kernel_is_turned_from_oihw_to_hwio(tmp_path):
    tensors = squeezenet_file(tmp_path / "w.npz")
    (params, _), report = initialize(shapes_of("squeezenet"), tmp_path / "w.npz")
    theirs = tensors["fire3/expand3x3/w"]
    ours = params["backbone"]["fire3"]["expand3x3"]["kernel"]
    assert ours.shape == (3, 3, 16, 64)
    assert ours[2, 0, 5, 7] == theirs[7, 5, 2, 0]
    assert "SqueezeNet 1.1, Caffe names" in report
    assert "score16" in report


def test_a_fully_connected_layer_gives_the_same_numbers_as_a_convolution():
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(5, 3 * 7 * 7)).astype(np.float32)
    features = rng.normal(size=(3, 7, 7)).astype(np.float32)  # channels first, as it was trained
    kernel = from_fully_connected(7, 7)(weight)
    as_convolution = np.einsum("hwc,hwco->o", features.transpose(1, 2, 0), kernel)
    np.testing.assert_allclose(as_convolution, weight @ features.ravel(), rtol=1e-5, atol=1e-5)


def test_every_mismatch_is_reported_at_once(tmp_path):
    tensors = squeezenet_file(tmp_path / "w.npz")
    del tensors["conv1/b"]
    tensors["fire9/expand1x1/w"] = np.zeros((7, 7, 1, 1), np.float32)
    tensors["extra/w"] = np.zeros(3, np.float32)
    tensors["fire5/squeeze1x1/b"][0] = np.nan
    np.savez(tmp_path / "w.npz", **tensors)
    with pytest.raises(UserError) as error:
        initialize(shapes_of("squeezenet"), tmp_path / "w.npz")
    for part in (
        "missing conv1/b",
        "fire9/expand1x1/w has shape (7, 7, 1, 1)",
        "unexpected extra/w",
        "fire5/squeeze1x1/b is not finite",
    ):
        assert part in str(error.value)


def test_weights_of_another_backbone_are_refused(tmp_path):
    squeezenet_file(tmp_path / "w.npz")
    with pytest.raises(UserError, match=r"fits model\.backbone=squeezenet"):
        initialize(shapes_of("resnet18"), tmp_path / "w.npz")


def test_unreadable_files_are_refused_by_name(tmp_path):
    squeezenet_file(tmp_path / "w.npz")
    whole = (tmp_path / "w.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    np.savez(tmp_path / "other.npz", some=np.zeros(2))
    (tmp_path / "w.txt").write_text("")
    for name, message in [
        ("none.npz", "there is no file"),
        ("cut.npz", r"cut\.npz cannot be read"),
        ("other.npz", "no known source"),
        ("w.txt", r"must be a file of weights that ends in"),
    ]:
        with pytest.raises(UserError, match=message):
            initialize(shapes_of("squeezenet"), tmp_path / name)


def test_a_pth_file_gives_the_same_as_the_npz(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    tensors = squeezenet_file(tmp_path / "w.npz")
    torch.save({key: torch.tensor(value) for key, value in tensors.items()}, tmp_path / "w.pth")
    from_npz, _ = initialize(shapes_of("squeezenet"), tmp_path / "w.npz")
    from_pth, _ = initialize(shapes_of("squeezenet"), tmp_path / "w.pth")
    jax.tree.map(np.testing.assert_array_equal, from_npz, from_pth)


def test_the_real_squeezenet_sees_a_cat():
    """The features at stride 16 are right: with conv10, they give ImageNet's classes."""
    if not WEIGHTS.is_dir():
        pytest.skip("the real weights are not at hand")
    path = WEIGHTS / "squeezenet1_1_imagenet.npz"
    network = PureModel(abstract_model(ModelConfig(backbone="squeezenet"), 21))
    variables, _ = initialize(pretrained.zeros(network), path)
    voc = WEIGHTS.parent / "VOCdevkit/VOC2012"
    rows, columns = np.nonzero(read_mask(voc / "SegmentationClass/2007_000528.png") == 8)
    photo = Image.open(voc / "JPEGImages/2007_000528.jpg")
    cat = photo.crop((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
    image = np.asarray(cat.resize((227, 227)))

    run = jax.jit(lambda v, x: network(v, x)[0]["backbone16"], compiler_options=QUICKLY_COMPILED)
    features = np.asarray(run(variables, image[None]))
    with np.load(path) as file:
        scores = np.maximum(features @ file["conv10/w"][:, :, 0, 0].T + file["conv10/b"], 0)
    best = int(np.asarray(scores).mean((0, 1, 2)).argmax())
    assert best in {281, 282, 283, 284, 285}  # ImageNet's five domestic cats


def test_the_real_vgg16_trunk_loads_and_names_what_it_lacks():
    if not WEIGHTS.is_dir():
        pytest.skip("the real weights are not at hand")
    path = WEIGHTS / "vgg16_conv_trunk_hed.npz"
    (params, _), report = initialize(shapes_of("vgg16"), path)
    with np.load(path) as file:
        expected = file["conv3_2/kernel"].astype(np.float32)
    np.testing.assert_array_equal(params["backbone"]["conv3_2"]["kernel"], expected)
    assert "backbone/fc6, backbone/fc7" in report


# Heads, channels and trunks that the source lacks


def fcn_file(torch, path: Path) -> dict[str, Any]:
    """Writes torchfcn's FCN-32s, with narrow layers and numbers drawn at random."""
    rng = np.random.default_rng(0)
    tensors = {}
    ours = flatten(shapes_of("vgg16", skips=0))
    turned = {from_oihw: (3, 2, 0, 1), from_iohw: (2, 3, 0, 1)}
    for name, (key, layout) in torchfcn_tables.torchfcn("FCN-32s").table.items():
        shape = (64, 64, 21, 21) if name == "head/upsample32/kernel" else ours[name].shape
        if name.startswith("head/score32"):
            shape = (*shape[:-1], 21)
        if layout in turned:
            shape = tuple(shape[axis] for axis in turned[layout])
        tensors[key] = torch.tensor(rng.random(shape, dtype=np.float32) - 0.5)
    torch.save(tensors, path)
    return tensors


def test_a_head_of_other_classes_is_not_used_and_reported(torch, narrow, tmp_path):
    fcn_file(torch, tmp_path / "fcn.pth")
    (params, _), report = initialize(shapes_of("vgg16", skips=0), tmp_path / "fcn.pth")
    assert np.any(params["backbone"]["fc7"]["kernel"])
    assert not np.any(params["head"]["score32"]["kernel"])
    assert "of another shape in the file, so unchanged: head/score32, head/upsample32" in report


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["fc.weight", "fc.bias", "bn1.num_batches_tracked"], "fc"),
        (["classifier.6.weight"], "classifier.6"),
        (["conv10/w", "conv10/b"], "conv10"),
        (
            [f"aux{n}.{part}.weight" for n in (1, 2) for part in ("conv", "fc1", "fc2")],
            "aux1, aux2",
        ),
    ],
)
def test_a_classifiers_last_layers_are_not_used_and_reported(tmp_path, names, shown):
    squeezenet_file(tmp_path / "w.npz")
    extra_tensors = dict.fromkeys(names, np.zeros(1))
    weights = dataclasses.replace(pretrained.read(tmp_path / "w.npz"), extra_tensors=extra_tensors)
    _, report = weights.apply(shapes_of("squeezenet"))
    assert report.endswith(f"; the source's last layers are not used: {shown}")


def test_layers_that_the_network_lacks_are_reported(torch, narrow, tmp_path):
    fcn_file(torch, tmp_path / "fcn.pth")
    _, report = initialize(shapes_of("vgg16", skips=0, upsampling="fixed"), tmp_path / "fcn.pth")
    assert "in the file, but not in this network: head/upsample32" in report


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_other_channels_take_the_colours_filters(tmp_path, channels):
    theirs = squeezenet_file(tmp_path / "w.npz")["conv1/w"].transpose(2, 3, 1, 0)
    (params, _), report = initialize(shapes_of("squeezenet", channels=channels), tmp_path / "w.npz")
    assert f"colour filters adapted to {channels} channels" in report
    kernel = np.asarray(params["backbone"]["conv1"]["kernel"])
    assert kernel.shape == (3, 3, channels, 64)
    if channels < 3:
        for channel in range(channels):
            shared = theirs.sum(2) / channels
            np.testing.assert_allclose(kernel[:, :, channel], shared, rtol=1e-5, atol=1e-6)
    else:
        np.testing.assert_array_equal(kernel[:, :, :3], theirs)
        for extra in range(3, channels):
            np.testing.assert_allclose(kernel[:, :, extra], theirs.mean(2), rtol=1e-6)


def test_weights_of_images_are_inflated_for_volumes(tmp_path, randomised):
    """On a volume of equal slices the features in the middle are those of a slice."""
    config = ModelConfig(
        backbone="unet",
        decoder="unet",
        features=(4, 6),
        norm="none",
        dropout=0.0,
        preprocessing="none",
    )
    flat = PureModel(randomised(lambda: build_model(config, 3, rngs=nnx.Rngs(0))))
    provenance = Provenance(Config(model=config), {"": ("a", "b", "c")}, source="slices", step=1)
    tensors = {key: np.asarray(value) for key, value in flatten(flat.variables).items()}
    model_file.save(tmp_path / "flat.safetensors", tensors, provenance)
    build = functools.partial(build_model, config, 2, channels=1, ndim=3, rngs=nnx.Rngs(1))
    deep = PureModel(build())
    weights = load_weights(tmp_path / "flat.safetensors")
    variables, report = weights.apply(deep.variables)
    assert "kernels of two axes inflated to three" in report
    assert "of another shape in the file, so unchanged: head/score1" in report
    slices = np.random.default_rng(0).standard_normal((1, 8, 6, 1)).astype(np.float32)
    volume = np.repeat(slices[:, :, :, None], 24, axis=3)
    wanted, _ = flat(flat.variables, np.repeat(slices, 3, axis=-1))
    features, _ = deep(variables, volume)
    np.testing.assert_allclose(
        features["decoder1"][:, :, :, 12], wanted["decoder1"], rtol=1e-4, atol=1e-4
    )


def test_late_fusion_starts_as_the_mean_of_its_two_networks(tmp_path, randomised):
    """Each trunk has its own file, and the scores are their mean (Long et al. 2015, NYUDv2)."""
    networks = {}
    for name, seed in (("rgb", 0), ("hha", 1)):
        config = ModelConfig(backbone="squeezenet", skips=1, dropout=0.0)
        network = PureModel(randomised(lambda c=config: build_model(c, 3, rngs=nnx.Rngs(0))))
        variables = jax.tree.map(lambda leaf, s=seed: leaf * (1 + 0.1 * s), network.variables)
        provenance = Provenance(Config(model=config), {"": ("a", "b", "c")}, source=name, step=1)
        tensors = {key: np.asarray(value) for key, value in flatten(variables).items()}
        model_file.save(tmp_path / f"{name}.safetensors", tensors, provenance)
        networks[name] = (network, variables)
    config = ModelConfig(backbone="squeezenet", skips=1, dropout=0.0, fusion="late")
    late = PureModel(randomised(lambda: build_model(config, 3, channels=6, rngs=nnx.Rngs(0))))
    both = f"{tmp_path}/rgb.safetensors,{tmp_path}/hha.safetensors"
    variables, report = load_weights(both).apply(late.variables)
    assert "unchanged" not in report

    image = np.random.default_rng(0).integers(0, 256, (1, 40, 50, 6), np.uint8)
    # The second trunk's channels are not colours: they keep their order and have one mean.
    preprocessing = late.preprocessing
    assert preprocessing.channels == 6

    def scores(network, variables, image):
        run = jax.jit(lambda v, x: network(v, x)[0], compiler_options=QUICKLY_COMPILED)
        return run(variables, image)

    first, first_variables = networks["rgb"]
    second, second_variables = networks["hha"]
    mean = np.mean(preprocessing.mean[:3])
    as_bgr = np.asarray(preprocessing.mean[2::-1]) - mean  # undoes the second's own means and order
    second_image = image[..., 3:][..., ::-1].astype(np.float32) + as_bgr
    of_first = scores(first, first_variables, image[..., :3])
    of_second = scores(second, second_variables, jnp.asarray(second_image))
    of_both = scores(late, variables, image)
    for name in ("score16", "score8"):
        expected = (of_first[name] + of_second[name]) / 2
        np.testing.assert_allclose(of_both[name], expected, atol=1e-4 * np.ptp(expected), rtol=0)


def test_converted_weights_come_back_with_what_is_known_of_them(tmp_path):
    theirs = squeezenet_file(tmp_path / "w.npz")
    provenance, tensors = convert(pretrained.read(tmp_path / "w.npz"))
    model_file.save(tmp_path / "w.safetensors", tensors, provenance)
    again = pretrained.read(tmp_path / "w.safetensors")
    assert again.provenance == provenance
    assert json.loads((tmp_path / "w.json").read_text())["source"] == "SqueezeNet 1.1, Caffe names"
    direct, _ = initialize(shapes_of("squeezenet"), tmp_path / "w.npz")
    through, _ = again.apply(shapes_of("squeezenet"))
    jax.tree.map(np.testing.assert_array_equal, direct, through)
    assert sum(t.size for t in tensors.values()) == sum(t.size for t in theirs.values())


def test_two_sources_are_for_late_fusion_alone(tmp_path):
    squeezenet_file(tmp_path / "a.npz")
    with pytest.raises(UserError, match=r"names two sources: set model.fusion=late"):
        initialize(shapes_of("squeezenet"), f"{tmp_path}/a.npz,{tmp_path}/a.npz")


def test_a_whole_network_must_fit_to_be_converted(torch, narrow, tmp_path):
    tensors = fcn_file(torch, tmp_path / "fcn.pth")
    tensors["upscore.weight"] = torch.ones(21, 21, 32, 32)
    torch.save(tensors, tmp_path / "fcn.pth")
    with pytest.raises(UserError, match=r"upscore\.weight has shape \(21, 21, 32, 32\)"):
        convert(pretrained.read(tmp_path / "fcn.pth"))


def test_our_own_weights_are_not_converted_again(tmp_path):
    squeezenet_file(tmp_path / "w.npz")
    provenance, tensors = convert(pretrained.read(tmp_path / "w.npz"))
    model_file.save(tmp_path / "w.safetensors", tensors, provenance)
    with pytest.raises(UserError, match="holds weights of fcn_jax already"):
        convert(pretrained.read(tmp_path / "w.safetensors"))


def test_differences_from_the_run_of_the_weights_are_noted():
    voc = {"": tuple(f"class {index}" for index in range(21))}
    fitting = ModelConfig("vgg16", padding="paper", score_scales=(1.0, 0.01, 0.0001))
    provenance = Provenance(Config(model=fitting), voc, source="FCN-8s at once")
    weights = pretrained.Weights(Path("fcn.caffemodel"), provenance, {})
    assert weights.notes(fitting, voc) == []
    (note,) = weights.notes(ModelConfig("vgg16"), voc)
    assert "padding is paper there and same here" in note
    assert "score_scales is (1.0, 0.01, 0.0001) there and None here" in note
    # Its head is not used if the number of classes is another one.
    assert weights.notes(ModelConfig("vgg16"), {"": ("a", "b")}) == []
    (note,) = weights.notes(fitting, {"": tuple(map(str, range(21)))})
    assert "same number of classes, but other ones (class 0, class 1, class 2, class 3, …)" in note
    (note,) = weights.notes(dataclasses.replace(fitting, preprocessing="torchvision"), voc)
    assert "trained with caffe preprocessing, and model.preprocessing is torchvision" in note


def test_the_caveat_of_a_source_is_noted(torch, tmp_path):
    tensors = {}
    for key, _ in torchfcn_tables.torchfcn("FCN-8s").table.values():
        tensors[key] = torch.zeros(1)
    torch.save(tensors, tmp_path / "fcn8s.pth")
    weights = pretrained.read(tmp_path / "fcn8s.pth")
    (note, *_) = weights.notes(ModelConfig("vgg16", padding="paper"), {})
    assert "FCN8sAtOnce" in note
    assert "score_scales=1,0.01,0.0001" in note
