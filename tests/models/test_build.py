"""Networks are built from the name of a backbone: built in, registered, or in a package."""

import functools
import sys
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from fcn_jax import registry
from fcn_jax.config import ModelConfig, default_config
from fcn_jax.errors import ArgumentError
from fcn_jax.models.backbones.efficientnet import EfficientNetLite0
from fcn_jax.models.backbones.googlenet import GoogLeNet
from fcn_jax.models.backbones.mobilenet import MobileNetV3Large
from fcn_jax.models.backbones.preprocess import (
    CAFFE,
    INCEPTION,
    PREPROCESSING,
    TORCHVISION,
    Preprocessing,
)
from fcn_jax.models.backbones.small import SmallNet
from fcn_jax.models.backbones.squeezenet import SqueezeNet
from fcn_jax.models.build import abstract_model, build_model, init_model, preprocessing_name
from fcn_jax.models.layers import BatchNorm
from fcn_jax.models.upsampling import BilinearUpsample, ConvTranspose
from tests.own_folder import command

CLIP = Preprocessing(mean=(122.8, 116.7, 104.1), std=(68.5, 66.6, 70.3))

BACKBONE_FILE = '''
"""A backbone of another project, in one file."""

from flax import nnx

from fcn_jax.models.backbones.preprocess import TORCHVISION
from fcn_jax.models.geometry import PIXELS
from fcn_jax.models.layers import Conv, relu
from fcn_jax.registry import register_backbone


class Patches(nnx.Module):
    def __init__(self, *, width=8, preprocessing=TORCHVISION, rngs):
        self.preprocessing = preprocessing
        self.stem = Conv(preprocessing.channels, width, (4, 4), stride=4, padding=(0, 3), rngs=rngs)
        self.channels = {4: width}
        self.grids = {4: PIXELS.after(4, stride=4, padding=(0, 3))}

    def __call__(self, image, *, train=False, keys=None):
        return {4: relu(self.stem(image))}
'''


@pytest.fixture
def backbones(monkeypatch: pytest.MonkeyPatch) -> registry.Registry:
    """Yields the registry of backbones, and removes what the test has registered."""
    monkeypatch.setattr(registry.backbones, "_registered", {})
    return registry.backbones


def built(name: str, **settings: object) -> object:
    return abstract_model(ModelConfig(backbone=name, **settings), 2).backbone


@pytest.mark.parametrize(
    ("name", "kind", "preprocessing"),
    [
        ("small", SmallNet, TORCHVISION),
        ("squeezenet", SqueezeNet, CAFFE),
        ("googlenet", GoogLeNet, INCEPTION),
        ("mobilenet_v3_large", MobileNetV3Large, TORCHVISION),
        ("efficientnet_lite0", EfficientNetLite0, TORCHVISION),
    ],
)
def test_a_config_names_a_backbone_and_its_pixels(
    name: str, kind: type, preprocessing: Preprocessing
) -> None:
    backbone = built(name)
    assert isinstance(backbone, kind)
    assert backbone.preprocessing == preprocessing
    assert PREPROCESSING[preprocessing_name(ModelConfig(backbone=name))] == preprocessing


def test_variants_of_an_architecture_have_pixels_of_their_own() -> None:
    names = {"alexnet": "torchvision", "alexnet_caffe": "caffe"}
    names |= {"vgg16": "caffe", "vgg16_bn": "torchvision", "resnet18": "torchvision"}
    assert {name: preprocessing_name(ModelConfig(backbone=name)) for name in names} == names
    chosen = ModelConfig(backbone="vgg16", preprocessing="inception")
    assert preprocessing_name(chosen) == "inception"


def test_build_follows_the_config() -> None:
    config = ModelConfig(backbone="squeezenet", skips=1, upsampling="fixed", dropout=0.25)
    model = abstract_model(config, 7)
    assert isinstance(model.backbone, SqueezeNet)
    assert model.backbone.dropout_rate == 0.25
    assert model.stages == (16, 8)
    assert isinstance(model.head.upsample8, BilinearUpsample)
    # Odd windows centre SqueezeNet's features on pixels; half_pixel centres them between pixels.
    assert (model.head.upsample8.filter_size, model.head.upsample8.crop) == (15, 7)
    half_pixel = ModelConfig(
        backbone="squeezenet",
        alignment="half_pixel",
        compute_dtype="bfloat16",
        score_scales=(1.0, 0.1, 0.2),
    )
    model = abstract_model(half_pixel, 7)
    assert model.dtype == jnp.bfloat16
    assert model.stages == (16, 8, 4)
    assert model.scales == {16: 1.0, 8: 0.1, 4: 0.2, 2: 1.0}
    assert isinstance(model.head.upsample4, ConvTranspose)
    assert model.head.upsample4.kernel.shape == (8, 8, 7, 7)
    assert model.head.upsample4.crop == 2


def test_score_layers_start_at_zero_or_as_other_layers() -> None:
    for score_init, deviation in (("zero", 0.0), ("normal", (2 / 64) ** 0.5)):
        config = ModelConfig(backbone="small", features=(4, 64), skips=0, score_init=score_init)
        kernel = build_model(config, 200, rngs=nnx.Rngs(0)).head.score4.kernel[...]
        assert float(kernel.std()) == pytest.approx(deviation, rel=0.05)


def test_an_unknown_backbone_is_refused_with_the_nearest_name() -> None:
    for build in (lambda model: build_model(model, 7, rngs=nnx.Rngs(0)), check):
        with pytest.raises(ArgumentError, match=r"model.backbone \(=resnet81\).*mean resnet18\?"):
            build(ModelConfig(backbone="resnet81"))


def check(model: ModelConfig) -> None:
    config = default_config()
    config.model = model
    config.check()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"backbone": "resnet18", "output_stride": 8},
            r"model.output_stride \(=8\) is not supported by resnet18, only by resnet50, resnet1",
        ),
        (
            {"backbone": "squeezenet", "padding": "paper"},
            r"model.padding \(=paper\) is not supported by squeezenet, only by alexnet, "
            "alexnet_caffe, vgg16, vgg16_bn",
        ),
        ({"backbone": "small", "fusion": "late"}, r"model.fusion \(=late\) needs .* more than 3"),
        ({"backbone": "alexnet", "remat": True}, r"model.remat \(=True\) needs a backbone with b"),
    ],
)
def test_a_setting_that_the_backbone_lacks_is_refused(
    settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        abstract_model(ModelConfig(**settings), 2)


# Backbones of other projects


def patches() -> type:
    namespace: dict[str, type] = {}
    exec(BACKBONE_FILE, namespace)  # without registering it
    return namespace["Patches"]


def test_a_registered_backbone_is_built_by_its_name(backbones: registry.Registry) -> None:
    kind = backbones.register("patches")(patches())
    assert backbones.names[-1] == "patches"
    assert isinstance(built("patches", skips=0), kind)
    check(ModelConfig(backbone="patches"))
    # Its signature need not name the options that it does not support.
    with pytest.raises(ArgumentError, match=r"output_stride \(=8\) is not supported by patches"):
        built("patches", output_stride=8)
    model = init_model(ModelConfig(backbone="patches", skips=0), 3, seed=0)
    assert model(jnp.zeros((1, 9, 7, 3), jnp.uint8)).shape == (1, 9, 7, 3)


def test_another_name_may_stand_for_other_arguments(backbones: registry.Registry) -> None:
    wide = functools.partial(patches(), width=32)
    backbones.register("wide")(wide)
    assert built("wide", skips=0).channels == {4: 32}
    backbones.register("wide")(functools.partial(wide))  # a config file that is executed twice
    with pytest.raises(ValueError, match=r"'wide' is already registered for model\.backbone"):
        backbones.register("wide")(functools.partial(SmallNet))
    with pytest.raises(ValueError, match="'small' is already registered"):
        backbones.register("small")(wide)


def test_a_backbone_is_given_the_options_that_it_names(backbones: registry.Registry) -> None:
    given = []

    @backbones.register("picky")
    def picky(
        *,
        preprocessing: Preprocessing = CLIP,
        output_stride: Literal[32, 16] = 32,
        dropout_rate: float = 0.1,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ) -> SmallNet:
        given.append((output_stride, dropout_rate, axis_name))
        return SmallNet(preprocessing=preprocessing, axis_name=axis_name, rngs=rngs)

    config = ModelConfig(backbone="picky", output_stride=16, dropout=0.25)
    model = abstract_model(config, 2, axis_name="data")
    assert given == [(16, 0.25, "data")]
    # A normalisation without a name is called "auto".
    assert model.backbone.preprocessing == CLIP
    assert preprocessing_name(config) == "auto"
    with pytest.raises(ArgumentError, match=r"=8\) .* by picky, only by resnet50, resnet101, res"):
        built("picky", output_stride=8)


def test_statistics_of_one_device_are_refused(backbones: registry.Registry) -> None:
    @backbones.register("forgetful")
    def forgetful(*, preprocessing: Preprocessing = TORCHVISION, rngs: nnx.Rngs) -> SmallNet:
        return SmallNet(preprocessing=preprocessing, rngs=rngs)

    assert any(isinstance(m, BatchNorm) for _, m in nnx.iter_modules(built("forgetful")))
    with pytest.raises(ValueError, match=r"SmallNet.block1.bn1 has axis_name=None, not 'data'"):
        abstract_model(ModelConfig(backbone="forgetful"), 2, axis_name="data")


def test_a_backbone_of_an_installed_package_is_known(
    backbones: registry.Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other_package.py").write_text(BACKBONE_FILE)
    information = tmp_path / "other_package-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: other_package\n")
    (information / "entry_points.txt").write_text(
        "[fcn_jax.backbones]\npatches = other_package:Patches\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert "patches" in backbones.names
    assert "other_package" not in sys.modules  # until it is used
    try:
        assert type(built("patches", skips=0)).__module__ == "other_package"
    finally:
        sys.modules.pop("other_package", None)


def test_a_config_file_may_import_a_backbone(tmp_path: Path) -> None:
    (tmp_path / "my_backbone.py").write_text(
        BACKBONE_FILE.replace("class Patches", '@register_backbone("patches")\nclass Patches')
    )
    (tmp_path / "mine.py").write_text(
        f"import sys\n\nsys.path.append({str(tmp_path)!r})\nimport my_backbone\n"
        "from fcn_jax.config import default_config\n\n\n"
        "def get_config():\n"
        "    config = default_config()\n"
        '    config.model.backbone = "patches"\n'
        "    return config\n"
    )
    shown = command("train", f"--config={tmp_path}/mine.py", "--help")
    assert shown.returncode == 0, shown.stderr
    line = next(line for line in shown.stdout.splitlines() if "model.backbone=patches" in line)
    assert line.endswith("unet, patches")
    refused = command("train", f"--config={tmp_path}/mine.py", "--config.model.backbone=patch")
    assert "config.model.backbone (=patch) must be one of small" in refused.stderr
    assert refused.stderr.endswith("did you mean patches?\n")


def test_classes_by_label_map_give_logits_by_label_map() -> None:
    model = abstract_model(ModelConfig(backbone="small"), {"things": 4, "ground": 3})
    logits = jax.eval_shape(
        lambda state, image: nnx.merge(nnx.graphdef(model), state)(image),
        nnx.state(model),
        jax.ShapeDtypeStruct((1, 32, 40, 3), jnp.uint8),
    )
    assert {name: x.shape for name, x in logits.items()} == {
        "things": (1, 32, 40, 4),
        "ground": (1, 32, 40, 3),
    }


def test_a_whole_config_is_not_the_settings_of_a_model():
    with pytest.raises(ValueError, match=r"`config` must be .*, not a Config: give config\.model"):
        init_model(default_config(), 6, seed=0)


def test_an_image_without_batch_axis_is_refused():
    model = init_model(ModelConfig(backbone="small"), 6, seed=0)
    with pytest.raises(ValueError, match=r"of shape \(40, 50, 3\)\) must have a batch axis"):
        model(jnp.zeros((40, 50, 3), jnp.uint8))
