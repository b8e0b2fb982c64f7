"""Windows, scales and mirror images, against loops written by hand, PyTorch and MONAI."""

import functools
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from fcn_jax.config import Config, ModelConfig
from fcn_jax.data.masks import read_mask
from fcn_jax.errors import UserError
from fcn_jax.export import export
from fcn_jax.inference import views
from fcn_jax.inference.options import WHOLE, Inference
from fcn_jax.inference.trained import Predictor, load_run
from fcn_jax.inference.views import WINDOW_BATCH_SIZE, ViewPredictor
from fcn_jax.models.backbones.preprocess import TORCHVISION
from fcn_jax.models.backbones.small import SmallNet
from fcn_jax.models.build import build_model
from fcn_jax.models.fcn import FCN
from fcn_jax.models.pure_model import PureModel
from fcn_jax.pretrained import Provenance
from tests.in_process import run_command

MAPS = {"things": 5, "heights": 3}
CHANNELS = 4


@pytest.fixture(scope="module")
def network(randomised: Callable[[Callable[[], FCN]], FCN]) -> PureModel:
    """A network with two label maps, four channels, and strides 2 and 4."""
    return PureModel(
        randomised(
            lambda: FCN(
                SmallNet(
                    features=(4, 6),
                    preprocessing=TORCHVISION.for_channels(CHANNELS),
                    rngs=nnx.Rngs(0),
                ),
                MAPS,
                skips=1,
                rngs=nnx.Rngs(1),
            )
        )
    )


@pytest.fixture(scope="module")
def variables(network: PureModel) -> Any:
    return network.variables


@pytest.fixture(scope="module")
def alone(network: PureModel, variables: Any) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Returns the logits (h, w, k) of an image without a canvas."""
    run = jax.jit(network.__call__)

    def logits(image: np.ndarray) -> dict[str, np.ndarray]:
        values, _ = run(variables, image[None])
        return {name: np.asarray(values[f"logits_{name}"][0]) for name in MAPS}

    return logits


def picture(height: int, width: int, channels: int = CHANNELS) -> np.ndarray:
    random = np.random.default_rng(height * width)
    coarse = random.integers(0, 256, (-(-height // 5), -(-width // 5), channels))
    return np.kron(coarse, np.ones((5, 5, 1), int))[:height, :width].astype(np.uint8)


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.asarray(jax.nn.softmax(logits))


def assert_close(by_name: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for name, probabilities in by_name.items():
        assert np.ptp(expected[name].argmax(-1)) > 0  # the images are not of one class
        np.testing.assert_allclose(probabilities, expected[name], atol=2e-5)
    assert list(by_name) == list(MAPS)


def test_by_default_an_image_is_predicted_whole_and_alone(network, variables, alone):
    image = picture(50, 70)
    predictor = ViewPredictor(network)
    expected = alone(image)
    assert_close(predictor.probabilities(variables, image), {n: softmax(expected[n]) for n in MAPS})
    for name, label in predictor.predict_maps(variables, image).items():
        assert label.dtype == np.uint8
        assert label.flags.writeable
        np.testing.assert_array_equal(label, expected[name].argmax(-1))


def test_classes_leave_the_device_in_a_byte(network, variables):
    image, size = np.zeros((1, 64, 64, CHANNELS), np.uint8), np.full((1, 2), 64, np.int32)
    classes = jax.eval_shape(functools.partial(views._classes, network), variables, image, size)
    for name in MAPS:
        assert (classes[name].shape, classes[name].dtype) == ((64, 64), np.uint8)
    assert views._best(np.zeros((64, 64, 5))).dtype == np.uint8


@pytest.mark.parametrize(("windows", "window_px"), [("average", (56, 72)), ("gaussian", (96, 80))])
def test_a_window_around_the_whole_image_changes_nothing(
    network, variables, alone, windows, window_px
):
    image = picture(56, 72)
    predictor = ViewPredictor(network, Inference(windows, window_px))
    assert_close(
        predictor.probabilities(variables, image),
        {name: softmax(logits) for name, logits in alone(image).items()},
    )


@pytest.mark.parametrize(
    ("size", "window_px", "overlap"),
    [
        ((50, 70), (32, 48), 0.0),
        ((50, 70), (32, 48), 0.4),
        ((20, 70), (32, 24), 0.25),  # lower than the window
    ],
)
def test_rectangles_are_averaged_before_the_softmax(
    network, variables, alone, size, window_px, overlap
):
    image = picture(*size)
    (height, width), (rows, columns) = size, np.minimum(size, window_px)
    sums = {name: np.zeros((height, width, count)) for name, count in MAPS.items()}
    times = np.zeros((height, width, 1))
    bottom, right = height - rows, width - columns
    steps = [max(int(side * (1 - overlap)), 1) for side in window_px]
    for top in sorted({*range(0, bottom, steps[0]), bottom}):
        for left in sorted({*range(0, right, steps[1]), right}):
            inside = slice(top, top + rows), slice(left, left + columns)
            times[inside] += 1
            for name, logits in alone(image[inside]).items():
                sums[name][inside] += logits
    assert times.max() > 1
    expected = {name: softmax(total / times) for name, total in sums.items()}
    predictor = ViewPredictor(network, Inference("average", window_px, overlap))
    assert_close(predictor.probabilities(variables, image), expected)
    for name, label in predictor.predict_maps(variables, image).items():
        np.testing.assert_array_equal(label, expected[name].argmax(-1))


class Summing:
    """Stands in for a network: scores each pixel, and the sum of each window."""

    label_maps = ("",)
    variables = None

    def __init__(self) -> None:
        self.traced: list[tuple[int, ...]] = []

    def model(self, variables: Any) -> SimpleNamespace:
        return SimpleNamespace(stages=(1,))

    def __call__(self, variables: Any, image: jax.Array, valid: jax.Array, tile: Any = None):
        self.traced.append(image.shape)
        image = jnp.asarray(image, jnp.float32)
        whole = jnp.broadcast_to(jnp.sum(image, axis=(1, 2), keepdims=True), image.shape) / 100
        return {"logits": jnp.concatenate([whole, image], axis=-1) / 50}, None

    def logits_in_blocks(self, *arguments: Any, **named: Any):
        """Returns all rows in one block."""
        values, _ = self(*arguments, **named)
        logits = values["logits"]
        return {"": SimpleNamespace(map=lambda classes: classes(logits))}, None


def test_gaussian_windows_by_hand():
    # Windows at 0, 3 and 6 of 4 pixels, each scored by its sum.
    image = np.asarray([10, 20, 30, 40, 50, 60, 70, 80, 90, 100], np.uint8)[None, :, None]
    predictor = ViewPredictor(Summing(), Inference("gaussian", (1, 4), 0.25))
    scores = predictor.probabilities(None, image)[""][0]
    sums = np.asarray([100, 220, 340]) / 5000
    # Pixel 3 is the last of one window and the first of the next; so are pixels 6 of the others.
    logits = sums[[0, 0, 0, 0, 1, 1, 1, 2, 2, 2]]
    logits[3], logits[6] = (sums[0] + sums[1]) / 2, (sums[1] + sums[2]) / 2
    expected = 1 / (1 + np.exp(image[0, :, 0] / 50 - logits))
    np.testing.assert_allclose(scores[:, 0], expected, atol=1e-6)
    # With half of it covered again, pixel 2 is a third of one and a first of the next.
    predictor = ViewPredictor(Summing(), Inference("gaussian", (1, 4), 0.5))
    inner, outer = np.exp(-0.5), np.exp(-4.5)  # at 0.5 and 1.5 with σ = 0.5
    logit = (inner * 100 + outer * 180) / (inner + outer) / 5000
    assert predictor.probabilities(None, image)[""][0, 2, 0] == pytest.approx(
        1 / (1 + np.exp(30 / 50 - logit)), abs=1e-6
    )


@pytest.mark.parametrize("size", [(37, 50), (10, 50), (37, 7), (9, 12)])
@pytest.mark.parametrize("mode", ["gaussian", "constant"])
def test_windows_are_blended_as_in_monai(torch: ModuleType, monai: ModuleType, size, mode):
    """Includes images smaller than the window, which MONAI pads: sums do not change by it."""
    image = picture(*size, 2)
    network = Summing()

    def predictor(windows):
        values, _ = network(None, windows.permute(0, 2, 3, 1).numpy(), None)
        return torch.from_numpy(np.array(values["logits"])).permute(0, 3, 1, 2)

    pixels = torch.from_numpy(image).float().permute(2, 0, 1)[None]
    blended = monai.sliding_window_inference(
        pixels, (16, 20), 3, predictor, overlap=0.25, mode=mode
    )
    windows = "average" if mode == "constant" else mode
    predictor = ViewPredictor(network, Inference(windows, (16, 20), 0.25))
    np.testing.assert_allclose(
        predictor.probabilities(None, image)[""],
        blended.softmax(1)[0].permute(1, 2, 0).numpy(),
        atol=1e-6,
    )


def test_a_network_sees_the_windows_that_monai_would_give_it(
    torch: ModuleType, monai: ModuleType, network, variables, alone
):
    image = picture(45, 75)

    def predictor(windows):
        logits = [alone(window)["things"] for window in windows.permute(0, 2, 3, 1).numpy()]
        return torch.from_numpy(np.stack(logits)).permute(0, 3, 1, 2)

    pixels = torch.from_numpy(image).float().permute(2, 0, 1)[None]
    blended = monai.sliding_window_inference(
        pixels, (24, 36), 2, predictor, overlap=0.5, mode="gaussian"
    )
    predictor = ViewPredictor(network, Inference("gaussian", (24, 36), 0.5))
    np.testing.assert_allclose(
        predictor.probabilities(variables, image)["things"],
        blended.softmax(1)[0].permute(1, 2, 0).numpy(),
        atol=2e-5,
    )


def test_windows_are_compiled_once_and_images_once_a_canvas():
    by_windows, whole = Summing(), Summing()
    for network, inference in [(by_windows, Inference("gaussian", (16, 20))), (whole, WHOLE)]:
        predictor = ViewPredictor(network, inference)
        for size in [(37, 50), (64, 20), (9, 12), (65, 50)]:
            predictor.predict_maps(None, picture(*size, 2))
    assert by_windows.traced == [(WINDOW_BATCH_SIZE, 16, 20, 2)]
    assert whole.traced == [(1, 64, 64, 2), (1, 128, 64, 2)]


def test_windows_without_end_are_refused():
    predictor = ViewPredictor(Summing(), Inference("gaussian", (1, 1), 0))
    assert predictor.predict_maps(None, picture(64, 64, 2))[""].shape == (64, 64)
    with pytest.raises(UserError, match="cut this image of 64×65 into 4160 windows: give larger"):
        predictor.predict_maps(None, picture(64, 65, 2))


def test_images_go_to_the_smallest_of_given_canvases_and_else_to_their_own():
    whole = Summing()
    predictor = ViewPredictor(whole, canvases=[(96, 96), (40, 64)])
    for size in [(37, 50), (40, 64), (41, 64), (9, 12), (96, 96), (97, 3)]:
        image = picture(*size, 2)
        np.testing.assert_array_equal(
            predictor.predict_maps(None, image)[""],
            ViewPredictor(Summing()).predict_maps(None, image)[""],
        )
    assert whole.traced == [(1, 40, 64, 2), (1, 96, 96, 2), (1, 128, 64, 2)]


@pytest.mark.parametrize(
    ("scales", "flip", "windows"),
    [
        ((0.5,), False, None),
        ((0.5, 1.0, 1.75), True, None),
        ((0.3, 1.5), True, "average"),
    ],
)
def test_views_are_averaged_as_by_pytorch(
    torch: ModuleType, network, variables, alone, scales, flip, windows
):
    image = picture(37, 53)
    height, width, _ = image.shape

    def resized(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        tensor = torch.from_numpy(values.astype(np.float32)).permute(2, 0, 1)[None]
        resized = torch.nn.functional.interpolate(tensor, size, mode="bilinear")
        return resized[0].permute(1, 2, 0).numpy()

    def logits_of(image: np.ndarray) -> dict[str, np.ndarray]:
        if not windows:
            return alone(image)
        # Two windows next to each other, which overlap at the right border only.
        rows, columns = min(64, image.shape[0]), min(48, image.shape[1])
        assert image.shape[0] == rows
        last = image.shape[1] - columns
        left, right = alone(image[:, :columns]), alone(image[:, last:])
        return {
            name: np.concatenate(
                [
                    left[name][:, :last],
                    (left[name][:, last:] + right[name][:, : columns - last]) / 2,
                    right[name][:, columns - last :],
                ],
                axis=1,
            )
            for name in MAPS
        }

    probabilities: dict[str, list[np.ndarray]] = {name: [] for name in MAPS}
    for scale in scales:
        size = (int(height * scale + 0.5), int(width * scale + 0.5))
        view = resized(image, size)
        for name, logits in logits_of(view).items():
            probabilities[name].append(softmax(resized(logits, (height, width))))
        if flip:
            for name, logits in logits_of(view[:, ::-1].copy()).items():
                logits = logits[:, ::-1].copy()
                probabilities[name].append(softmax(resized(logits, (height, width))))
    expected = {name: np.mean(views, axis=0) for name, views in probabilities.items()}
    inference = Inference(windows, (64, 48), 0.0, scales, flip)
    assert inference.views == len(probabilities["things"])
    predictor = ViewPredictor(network, inference)
    assert_close(predictor.probabilities(variables, image), expected)
    for name, label in predictor.predict_maps(variables, image).items():
        np.testing.assert_array_equal(label, expected[name].argmax(-1))


def test_with_flip_a_mirror_image_gets_the_mirrored_labels(network, variables):
    image = picture(40, 67)
    predictor = ViewPredictor(network, Inference(flip=True))
    expected = predictor.probabilities(variables, image)
    for name, probabilities in predictor.probabilities(variables, image[:, ::-1]).items():
        np.testing.assert_allclose(probabilities[:, ::-1], expected[name], atol=2e-5)


def test_an_image_of_one_pixel_has_views_too(network, variables):
    image = picture(1, 1)
    predictor = ViewPredictor(network, Inference("gaussian", (16, 16), 0.5, (0.1, 2.0), flip=True))
    for name, probabilities in predictor.probabilities(variables, image).items():
        assert probabilities.shape == (1, 1, MAPS[name])
        assert probabilities.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"windows": "hann"}, "windows (=hann) must be average or gaussian"),
        ({"window_px": (0, 480)}, "window_px (=0,480) must be a height and a width in 1…2048"),
        ({"window_px": (320, 4096)}, "window_px (=320,4096) must be a height"),
        ({"window_px": (320,)}, "window_px (=320) must be a height"),
        ({"overlap": 1.0}, "overlap (=1.0) must be at least 0 and below 1"),
        ({"overlap": -0.1}, "overlap (=-0.1)"),
        ({"overlap": float("nan")}, "overlap (=nan)"),
        ({"scales": ()}, "scales (=()) must be 1 to 12 numbers"),
        ({"scales": tuple(range(1, 14))}, "must be 1 to 12 numbers"),
        ({"scales": (1.0, 0.0)}, "scales (=1.0,0.0) must each be in 0.1…4.0"),
        ({"scales": (-0.5,)}, "scales (=-0.5)"),
        ({"scales": (5.0,)}, "scales (=5.0)"),
        ({"scales": (float("nan"),)}, "scales (=nan)"),
        ({"scales": (0.5, 1.0, 0.5)}, "scales (=0.5,1.0,0.5) names a scale twice"),
    ],
)
def test_impossible_options_are_refused(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Inference(**settings)


def test_averaged_rectangles_are_multiples_of_the_stride(network):
    with pytest.raises(ValueError, match=r"\(=30,48\) .* coarsest stride, 4, .*such as 32,48"):
        ViewPredictor(network, Inference("average", (30, 48)))
    ViewPredictor(network, Inference("gaussian", (30, 48)))


@pytest.fixture(scope="module")
def exported(
    randomised: Callable[[Callable[[], FCN]], FCN], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An exported network that has not been trained."""
    model = ModelConfig(backbone="small", skips=2)
    network = PureModel(randomised(lambda: build_model(model, 4, rngs=nnx.Rngs(0))))
    class_names = ("ground", "disc", "square", "cross")
    provenance = Provenance(Config(model=model), {"": class_names}, step=1)
    folder = tmp_path_factory.mktemp("exported")
    export(Predictor(network, network.variables, provenance), folder, {})
    return folder


def test_predict_averages_the_views_that_its_flags_name(exported: Path, tmp_path: Path):
    image = picture(60, 91, 3)
    Image.fromarray(image).save(tmp_path / "a.png")
    options = [
        "--windows=gaussian",
        "--window_px=32,64",
        "--overlap=0.5",
        "--scales=0.75,1",
        "--flip",
    ]
    result = run_command(
        "predict", f"--workdir={exported}", f"--output={tmp_path}/out", *options, tmp_path / "a.png"
    )
    assert result.returncode == 0, result.stderr
    predictor = load_run(exported)
    inference = Inference("gaussian", (32, 64), 0.5, (0.75, 1.0), flip=True)
    label = predictor(image, inference)
    assert np.any(label != predictor(image))
    np.testing.assert_array_equal(read_mask(tmp_path / "out/a.png"), label)
    np.testing.assert_array_equal(predictor.probabilities(image, inference).argmax(-1), label)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--overlap=0.5"], "--overlap needs --windows=average or"),
        (
            ["--windows=gaussian", "--window_px=320"],
            "--window_px (=320) must be a height and",
        ),
        (["--scales=0.5;1"], "--scales (=0.5;1) must be numbers such as 0.5,1,1.5"),
        (
            ["--windows=average", "--window_px=300,480"],
            "coarsest stride, 32, to be averaged; such as 320,",
        ),
    ],
)
def test_predict_refuses_impossible_views_in_one_line(exported, tmp_path, options, message):
    Image.fromarray(picture(9, 9, 3)).save(tmp_path / "a.png")
    result = run_command(
        "predict", f"--workdir={exported}", f"--output={tmp_path}/out", *options, tmp_path / "a.png"
    )
    assert (result.returncode, result.stderr.count("\n")) == (1, 1), result.stderr
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_descriptions_and_tags() -> None:
    assert (WHOLE.description, WHOLE.tag) == ("whole images", "")
    views = Inference(scales=(0.5, 1, 1.25), flip=True)
    assert views.description == "whole images, in sizes 0.5, 1, 1.25, mirrored too"
    assert views.tag == "scales_0.5_1_1.25_flip"
    windows = Inference("gaussian", (96, 128), 0.5)
    assert windows.description == "windows of 96×128, Gaussian weights, overlap 0.5"
    assert windows.tag == "gaussian_96x128_0.5"
