"""The settings: each has a range, and wrong values are refused in one line before anything runs."""

import dataclasses
import importlib
import math
from pathlib import Path
from typing import Any

import pytest

from fcn_jax.config import Config, check_ranges, default_config, load, override, settings
from fcn_jax.config.fields import MAX_INT, assign
from fcn_jax.config.sections import TrainConfig
from fcn_jax.data.datasets import open_dataset
from fcn_jax.errors import ArgumentError

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("[a-z]*.py"))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_file_can_be_used_and_shows_its_command(name):
    load(ROOT / "configs" / f"{name}.py").check()
    module = importlib.import_module(f"configs.{name}")
    assert f"--config=configs/{name}.py" in module.__doc__


def test_every_number_has_a_lower_bound():
    for one in settings(Config()):
        if any(str(kind) in str(one.kind) for kind in ("int", "float")):
            assert {"at_least", "above", "choices"} & set(one.rules), one.name


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("train.batch_size", "0", "must be a whole number, in 1…2147483647"),
        ("train.batch_size", "many", "must be a whole number, in 1…2147483647"),
        ("train.batch_size", "2.0", "must be a whole number, in 1…2147483647"),
        ("train.steps", "99999999999", f"must be a whole number, in 1…{MAX_INT}, or None"),
        ("train.steps", "9" * 5000, "must be a whole number"),
        ("train.steps", "-3", "must be a whole number, in 1…2147483647, or None"),
        ("train.epochs", "inf", "must be a finite number, above 0 and at most 1000000, or None"),
        ("train.epochs", "-1", "must be a finite number, above 0 and at most 1000000, or None"),
        ("train.eval_every_steps", "-1", "must be a whole number, in 1…2147483647, or None"),
        ("train.checkpoint_every_steps", "0", "must be a whole number, in 1…2147483647, or None"),
        ("eval.batch_size", "-1", "must be a whole number, in 1…2147483647, or None"),
        ("eval.canvases", "0", "must be a whole number, in 1…2147483647"),
        ("seed", "4294967296", "must be a whole number, in 0…4294967295"),
        ("seed", "-1", "must be a whole number, in 0…4294967295"),
        ("optim.learning_rate", "inf", "must be a finite number, above 0"),
        ("optim.learning_rate", "1e39", "must be a finite number, above 0"),
        ("optim.learning_rate", "nan", "must be a finite number, above 0"),
        ("optim.learning_rate", "0", "must be a finite number, above 0"),
        ("optim.momentum", "7", "must be a finite number, at least 0 and below 1"),
        ("optim.weight_decay", "-1e-4", "must be a finite number, in 0…1"),
        ("optim.backbone_rate", "nan", "must be a finite number, in 0…1000"),
        ("optim.warmup_steps", "-5", "must be a whole number, in 0…2147483647"),
        ("augment.brightness", "2", "must be a finite number, in 0…1"),
        ("augment.crop_px", "0,320", "must be two whole numbers, each in 1…32768, or None"),
        ("augment.crop_px", "-64,-64", "must be two whole numbers, each in 1…32768"),
        ("augment.crop_px", "64", "must be two whole numbers, each in 1…32768"),
        ("augment.crop_px", "64,64,64", "must be two whole numbers, each in 1…32768"),
        ("augment.crop_px", "abc", "must be two whole numbers, each in 1…32768"),
        ("augment.crop_px", "1000000,1000000", "must be two whole numbers, each in 1…32768"),
        ("augment.scale", "nan,nan", "must be two finite numbers, each in 0.1…10"),
        ("augment.scale", "0.5,inf", "must be two finite numbers, each in 0.1…10"),
        ("augment.scale", "0.001,0.001", "must be two finite numbers, each in 0.1…10"),
        ("augment.scale", "1", "must be two finite numbers, each in 0.1…10"),
        ("augment.scale", "1.5,0.5", "must be smallest,largest"),
        ("augment.flip", "perhaps", "must be true or false"),
        ("data.canvas_px", "512,0", "must be two whole numbers, each in 1…32768, or None"),
        ("data.canvas_px", "512", "must be two whole numbers, each in 1…32768, or None"),
        ("data.validation_fraction", "1", "must be a finite number, at least 0 and below 1"),
        ("data.num_classes", "300", "must be a whole number, in 1…255, or None"),
        ("data.label_maps", "masks,masks", "must be different names of sub-folders"),
        ("data.label_maps", "..", "must be different names of sub-folders"),
        ("data.label_maps", "", "must be different names of sub-folders"),
        ("data.extra_channels", "images", "must be different names of sub-folders"),
        ("data.name", "", "must be the name of a data set, which is no path"),
        ("data.name", "../../home", "must be the name of a data set, which is no path"),
        ("data.name", "/home", "must be the name of a data set, which is no path"),
        ("data.train_split", "", "must be text that is not empty"),
        ("model.backbone", "resnet5", "must be one of small, alexnet"),
        ("model.backbone", "resnet5", "; did you mean resnet50?"),
        ("model.output_stride", "17", "must be one of 32, 16, 8"),
        ("model.skips", "-1", "must be a whole number, in 0…16"),
        ("model.decoder", "u-net", "must be one of fcn, unet; did you mean unet?"),
        ("model.decoder_features", "64,32", "needs model.decoder=unet"),
        ("model.norm", "layer", "must be one of batch, group, instance, none"),
        ("augment.rotate", "true", "needs a square crop, not augment.crop_px=None"),
        ("augment.elastic_px", "5", "needs a crop"),
        ("model.dropout", "1", "must be a finite number, at least 0 and below 1"),
        ("model.context_features", "-4", "must be a whole number, in 1…65536, or None"),
        ("model.auxiliary_weight", "1e30", "must be a finite number, in 0…100"),
        ("model.score_scales", "1,-1", "must be finite numbers separated by commas, each above 0"),
        ("loss.names", "", "must be one of cross_entropy, focal"),
        ("loss.names", "dice,dyce", "dyce) must be one of cross_entropy, focal"),
        ("loss.weights", "1,2", "must be 1 numbers, one for each of loss.names (=cross_entropy)"),
        ("loss.weights", "0", "must be 1 numbers, one for each of loss.names (=cross_entropy) and"),
        ("loss.weights", "-1", "must be finite numbers separated by commas, each at least 0"),
        ("loss.class_weights", "balance", "must be balanced, or finite numbers separated by"),
        ("loss.class_weights", "1,nan", "must be balanced, or finite numbers separated by"),
        ("loss.class_weights", "1,inf", "must be balanced, or finite numbers separated by"),
        ("loss.class_weights", "1,-1", "must be balanced, or finite numbers separated by"),
        ("loss.class_weights", "1,x", "must be balanced, or finite numbers separated by"),
        ("train.accumulation_steps", "3", "batch_size (=8) must be divisible by train.accumul"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused(name, text, problem):
    config = default_config()
    if name in ("augment.rotate", "augment.elastic_px"):
        config.augment.crop_px = None

    def use() -> None:
        override(config, name, text)
        config.check()

    with pytest.raises(ArgumentError) as refused:
        use()
    message = str(refused.value)
    assert problem in message
    assert "\n" not in message
    assert len(message) < 500
    if name != "train.accumulation_steps":
        assert message.startswith(f"{name} (=")


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("skips", 1, "is not used with model.decoder=unet"),
        ("score_scales", (1.0, 0.1), "is not used with model.decoder=unet"),
        ("padding", "paper", "cannot be used with model.decoder=unet: use same or valid"),
    ],
)
def test_settings_of_the_other_decoder_are_refused(name: str, value: Any, problem: str) -> None:
    config = default_config()
    config.model.decoder = "unet"
    config.check()
    setattr(config.model, name, value)
    with pytest.raises(ArgumentError, match=problem):
        config.check()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train.batch_size", "8"),
        ("train.batch_size", 8.0),
        ("train.batch_size", True),
        ("train.batch_size", None),
        pytest.param("train.steps", 10**5000, id="many digits"),
        ("optim.momentum", "0.9"),
        ("optim.momentum", 10**400),
        ("optim.learning_rate", math.nan),
        ("augment.flip", 1),
        ("augment.crop_px", [64, 64]),
        ("augment.crop_px", (64.0, 64)),
        ("augment.crop_px", 64),
        ("data.name", 3),
        ("data.root", Path("data")),
        ("data.root", ""),
        ("data.root", "a\0b"),
        pytest.param("data.root", "a" * 10**6, id="a million letters"),
        pytest.param("loss.class_weights", (1.0,) * 10**6, id="a million weights"),
        ("data.label_maps", "masks"),
        ("model.backbone", 50),
        ("model.output_stride", "8"),
        ("model.score_scales", ()),
        ("loss.class_weights", "none"),
        ("train", 5),
        ("data", Config().augment),
    ],
)
def test_a_value_of_another_type_is_refused(name: str, value: Any):
    config = default_config()
    assign(config, name, value)
    with pytest.raises(ArgumentError, match=rf"^{name} \(=.*\) must be") as refused:
        config.check()
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500


def test_the_limits_themselves_can_be_used():
    config = default_config()
    config.seed, config.optim.warmup_steps, config.optim.backbone_rate = 2**32 - 1, 0, 0
    config.augment.brightness, config.optim.weight_decay = 1, 0.0
    config.augment.crop_px, config.data.canvas_px = (1, 1), (1, 32_768)
    config.check()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("data.canvas_px", "512,640", (512, 640)),
        ("data.canvas_px", "(512, 640)", (512, 640)),
        ("data.canvas_px", "None", None),
        ("data.canvas_px", "", None),
        ("data.root", "", None),
        ("data.root", "a,b", "a,b"),
        ("data.extra_channels", "hha, depth", ("hha", "depth")),
        ("data.extra_channels", "", ()),
        ("model.score_scales", "1,0.1,2e-2", (1.0, 0.1, 0.02)),
        ("model.score_scales", "1,", (1.0,)),
        ("model.remat", "True", True),
        ("loss.class_weights", "balanced", "balanced"),
        ("loss.class_weights", "1,2", (1.0, 2.0)),
        ("loss.class_weights", "none", None),
        ("train.epochs", "2", 2.0),
    ],
)
def test_texts_of_the_command_line_are_values_of_the_settings_type(name, text, value):
    config = default_config()
    override(config, name, text)
    (held,) = (one.value for one in settings(config) if one.name == name)
    assert held == value
    assert type(held) is type(value)
    check_ranges(config)


def test_the_form_of_the_options_of_a_loss_is_shown():
    config = default_config()
    config.loss.options = {"alpha": 0.3}  # type: ignore[assignment]
    message = r'options name=number, such as \("alpha=0.3", "beta=0.7"\) in a config file'
    with pytest.raises(ArgumentError, match=message):
        config.check()
    config.loss.options = ("alpha=0.3", "beta=0.7")
    config.check()


def test_either_steps_or_epochs_are_given():
    config = default_config()
    config.train = TrainConfig(epochs=24, steps=5)
    with pytest.raises(
        ArgumentError,
        match=r"train.steps \(=5\) must be None if train.epochs \(=24\) is given: "
        r"TrainConfig\(...\) takes one of them$",
    ):
        config.check()
    config.train.steps = config.train.epochs = None
    with pytest.raises(ArgumentError, match=r"train.steps \(=None\) must be given, or train.ep"):
        config.check()


def test_in_a_config_file_the_last_of_steps_and_epochs_holds():
    config = default_config()
    config.train.steps = 30
    assert (config.train.epochs, config.train.steps) == (None, 30)
    config.train.epochs = None
    config.check()
    config.train.epochs = 2
    assert (config.train.epochs, config.train.steps) == (2, None)
    config.check()
    again = dataclasses.replace(config.train, batch_size=4)
    assert (again.epochs, again.steps) == (2, None)


def test_on_the_command_line_the_last_of_steps_and_epochs_holds():
    config = default_config()
    assert config.train.epochs == 24
    override(config, "train.steps", "1")
    assert (config.train.epochs, config.train.steps) == (None, 1)
    override(config, "train.epochs", "2")
    assert (config.train.epochs, config.train.steps) == (2.0, None)
    config.check()


def test_steps_follow_from_epochs_and_the_number_of_images():
    config = default_config()
    config.train.batch_size, config.train.epochs = 4, 2.5
    assert config.train.total_steps(10) == 7  # 25 images in batches of 4, rounded up
    config.train.epochs = 1e6
    with pytest.raises(ArgumentError, match=r"train.epochs \(=1000000.0\) is more than 2147483647"):
        config.train.total_steps(10**7)


def test_whole_images_are_not_scaled():
    config = default_config()
    config.augment.crop_px, config.augment.scale = None, (0.5, 1.5)
    with pytest.raises(ArgumentError, match=r"must be 1,1 for whole images"):
        config.check()


@pytest.mark.parametrize(
    ("name", "value"), [("alignment", "half_pixel"), ("upsampling", "interpolate")]
)
def test_the_papers_padding_needs_its_geometry(name, value):
    config = default_config()
    config.model.backbone, config.model.padding = "vgg16", "paper"
    config.check()
    setattr(config.model, name, value)
    with pytest.raises(ArgumentError, match=rf"{name} \(={value}\) cannot be used with model.padd"):
        config.check()


def test_an_unknown_setting_cannot_be_set():
    config = Config()
    with pytest.raises(AttributeError, match=r"no setting 'epoch'; did you mean epochs\?"):
        config.train.epoch = 3
    with pytest.raises(AttributeError, match=r"no setting 'colour'$"):
        config.colour = "red"


def test_a_data_set_is_not_opened_with_settings_that_cannot_be_used(tmp_path):
    data = Config().data
    data.name, data.root, data.label_maps = "folder", str(tmp_path), ("../masks",)
    with pytest.raises(ArgumentError, match=r"data.label_maps \(=../masks\)"):
        open_dataset(data)
