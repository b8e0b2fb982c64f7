"""Weights made elsewhere reach their place, and whatever does not fit is named."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util
from PIL import Image

from fcn_jax.config import ModelConfig
from fcn_jax.data.labels import read_mask
from fcn_jax.errors import UserError
from fcn_jax.models.build import build
from fcn_jax.pretrained import initialize
from fcn_jax.pretrained.tables import SOURCES, from_fully_connected
from fcn_jax.step import Network

WEIGHTS = Path(__file__).parents[2] / "shared" / "data" / "weights"


def shapes_of(backbone: str):
    """The (params, batch_stats) of a network, as zeros: no memory is spent on drawing them."""
    config = ModelConfig(backbone=backbone)
    abstract = nnx.eval_shape(lambda: build(config, 3, rngs=nnx.Rngs(0)))
    parts = nnx.split(abstract, nnx.Param, nnx.BatchStat)[1:]
    return tuple(
        jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), nnx.to_pure_dict(part))
        for part in parts
    )


def flat(variables):
    params, stats = variables
    return traverse_util.flatten_dict(params, sep="/") | traverse_util.flatten_dict(stats, sep="/")


def squeezenet_file(path: Path) -> dict[str, np.ndarray]:
    """A file in the Caffe naming with numbers drawn at random."""
    rng = np.random.default_rng(0)
    source = next(make() for make in SOURCES if make().signature == "fire2/squeeze1x1/w")
    ours = flat(shapes_of("squeezenet"))
    tensors = {}
    for name, (key, _) in source.table.items():
        shape = ours[name].shape
        oihw = (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape
        tensors[key] = rng.normal(size=oihw).astype(np.float32)
    np.savez(path, **tensors)
    return tensors


@pytest.mark.parametrize("make", SOURCES, ids=lambda make: make.__name__)
def test_a_table_names_every_tensor_of_its_backbone_once(make):
    source = make()
    ours = {n for n in flat(shapes_of(source.backbone)) if n.startswith("backbone/")}
    absent = {n for n in ours if n.split("/")[1] in source.absent}
    assert set(source.table) == ours - absent
    keys = [key for key, _ in source.table.values()]
    assert len(set(keys)) == len(keys)


def test_a_kernel_is_turned_from_oihw_to_hwio(tmp_path):
    tensors = squeezenet_file(tmp_path / "w.npz")
    (params, _), report = initialize(shapes_of("squeezenet"), str(tmp_path / "w.npz"))
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
        initialize(shapes_of("squeezenet"), str(tmp_path / "w.npz"))
    for part in (
        "missing conv1/b",
        "fire9/expand1x1/w has shape (7, 7, 1, 1)",
        "unexpected extra/w",
        "fire5/squeeze1x1/b is not finite",
    ):
        assert part in str(error.value)


def test_weights_of_another_backbone_are_refused(tmp_path):
    squeezenet_file(tmp_path / "w.npz")
    with pytest.raises(UserError, match=r"fits config\.model\.backbone=squeezenet"):
        initialize(shapes_of("resnet18"), str(tmp_path / "w.npz"))


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
        ("w.txt", r"must be a \.npz or \.pth"),
    ]:
        with pytest.raises(UserError, match=message):
            initialize(shapes_of("squeezenet"), str(tmp_path / name))


def test_a_pth_file_gives_the_same_as_the_npz(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    tensors = squeezenet_file(tmp_path / "w.npz")
    torch.save({key: torch.tensor(value) for key, value in tensors.items()}, tmp_path / "w.pth")
    from_npz, _ = initialize(shapes_of("squeezenet"), str(tmp_path / "w.npz"))
    from_pth, _ = initialize(shapes_of("squeezenet"), str(tmp_path / "w.pth"))
    jax.tree.map(np.testing.assert_array_equal, from_npz, from_pth)


def test_the_real_squeezenet_sees_a_cat():
    """With conv10 on top, the features at stride 16 tell ImageNet's classes, so they are right."""
    if not WEIGHTS.is_dir():
        pytest.skip("the real weights are not at hand")
    path = WEIGHTS / "squeezenet1_1_imagenet.npz"
    network = Network(build(ModelConfig(backbone="squeezenet"), 21, rngs=nnx.Rngs(0)))
    variables, _ = initialize(network.variables, str(path))
    voc = WEIGHTS.parent / "VOCdevkit/VOC2012"
    rows, columns = np.nonzero(read_mask(voc / "SegmentationClass/2007_000528.png") == 8)
    photo = Image.open(voc / "JPEGImages/2007_000528.jpg")
    cat = photo.crop((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
    image = np.asarray(cat.resize((227, 227)))

    features = network.model(variables).features(jnp.asarray(image)[None])["backbone16"].values
    with np.load(path) as file:
        scores = np.maximum(features @ file["conv10/w"][:, :, 0, 0].T + file["conv10/b"], 0)
    best = int(np.asarray(scores).mean((0, 1, 2)).argmax())
    assert best in {281, 282, 283, 284, 285}  # ImageNet's five domestic cats


def test_the_real_vgg16_trunk_loads_and_names_what_it_lacks():
    if not WEIGHTS.is_dir():
        pytest.skip("the real weights are not at hand")
    path = WEIGHTS / "vgg16_conv_trunk_hed.npz"
    (params, _), report = initialize(shapes_of("vgg16"), str(path))
    with np.load(path) as file:
        expected = file["conv3_2/kernel"].astype(np.float32)
    np.testing.assert_array_equal(params["backbone"]["conv3_2"]["kernel"], expected)
    assert "backbone/fc6, backbone/fc7" in report
