"""Expected calibration error and temperatures, against NumPy, SciPy and torchmetrics."""

import itertools
import json
import math
import shutil
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from fcn_jax.data import shapes
from fcn_jax.data.canvases import round_up
from fcn_jax.errors import UserError
from fcn_jax.evaluation.calibration import (
    BINS,
    Calibration,
    count_calibration,
    digit_counts,
    from_digits,
)
from fcn_jax.evaluation.temperature_fit import INVERSES, fit, sums_of
from fcn_jax.inference.details import DetailPredictor
from fcn_jax.inference.options import Inference
from fcn_jax.inference.temperature import FittedTemperature, temperature_path
from fcn_jax.inference.trained import load_run
from fcn_jax.inference.uncertainty import UncertaintyPredictor
from fcn_jax.models.confidence import UNIT, packed_confidence, unpacked
from tests.in_process import run_command

CLASSES = 5


@pytest.fixture(scope="module")
def logits() -> np.ndarray:
    """Of two images, overconfident: labels are drawn at twice their temperature."""
    return 4 * np.random.default_rng(0).standard_normal((2, 60, 50, CLASSES)).astype(np.float32)


@pytest.fixture(scope="module")
def label(logits: np.ndarray) -> np.ndarray:
    random = np.random.default_rng(1)
    noise = random.gumbel(size=logits.shape)
    label = (logits / 2 + noise).argmax(-1).astype(np.uint8)
    label[random.random(label.shape) < 0.1] = 255
    return label


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values.astype(np.float64) - values.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def error_of_guo(probabilities: np.ndarray, label: np.ndarray) -> float:
    """The loop of the authors' code, `ECELoss`, in NumPy."""
    confidences, correct = probabilities.max(-1), probabilities.argmax(-1) == label
    borders = np.linspace(0, 1, 16)
    error = 0.0
    for low, high in itertools.pairwise(borders):
        inside = (confidences > low) & (confidences <= high)
        if inside.any():
            gap = abs(confidences[inside].mean() - correct[inside].mean())
            error += gap * inside.mean()
    return error


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_the_error_is_that_of_guo(logits, label, temperature):
    packed = packed_confidence(jnp.asarray(logits), temperature)
    on_device = from_digits(np.asarray(digit_counts(jnp.asarray(label), packed, CLASSES)))
    on_host = count_calibration(label, np.asarray(packed), CLASSES)
    np.testing.assert_array_equal(on_device, on_host)
    counted = label != 255
    expected = error_of_guo(softmax(logits[counted] / temperature), label[counted])
    assert Calibration(on_host).error == pytest.approx(expected, abs=1e-6)
    assert on_host[:, 0].sum() == counted.sum()
    classes, _ = unpacked(np.asarray(packed))
    np.testing.assert_array_equal(classes, logits.argmax(-1))


def test_the_error_is_that_of_torchmetrics(
    logits, label, torch: ModuleType, torchmetrics: ModuleType
):
    packed = np.asarray(packed_confidence(jnp.asarray(logits)))
    expected = torchmetrics.multiclass_calibration_error(
        torch.tensor(logits).permute(0, 3, 1, 2),
        torch.tensor(label.astype(np.int64)),
        num_classes=CLASSES,
        n_bins=BINS,
        ignore_index=255,
    )
    found = Calibration(count_calibration(label, packed, CLASSES)).error
    assert found == pytest.approx(float(expected), abs=1e-6)


def test_an_error_by_hand():
    # Two pixels of confidence 0.9, one right; two of 1.0, both right; one of 0.5, wrong.
    units = np.rint(np.array([0.9, 0.9, 1, 1, 0.5]) * UNIT).astype(np.int64)
    label = np.array([0, 1, 0, 0, 1], np.uint8)
    found = Calibration(count_calibration(label, units << 8, 2))
    assert found.error == pytest.approx((abs(1 - 1.8) + 0 + 0.5) / 5, abs=1e-6)
    assert found.counts[13].tolist()[:2] == [2, 1]
    assert found.counts[14].tolist() == [2, 2, 2 * UNIT]
    assert found.accuracies[7] == 0
    assert math.isnan(found.accuracies[0])
    assert math.isnan(Calibration(np.zeros((BINS, 3), np.int64)).error)


def test_images_of_16_million_pixels_are_summed_exactly():
    pixels = 2**24 - 1
    digits = np.zeros((2, BINS, 5), np.int32)
    digits[:, 14] = pixels, pixels, pixels * (UNIT >> 14), 0, 0
    digits[1, 3, 2:] = [pixels * 127] * 3
    counts = from_digits(digits)
    assert counts[14].tolist() == [2 * pixels, 2 * pixels, 2 * pixels * UNIT]
    assert counts[3, 2] == pixels * (UNIT - 1)


def test_the_temperature_is_that_of_a_direct_search(logits, label):
    counted = label != 255

    def mean_nll(temperature: float) -> float:
        probabilities = softmax(logits[counted] / temperature)
        return float(-np.log(probabilities[np.arange(counted.sum()), label[counted]]).mean())

    expected = scipy.optimize.minimize_scalar(
        mean_nll, bounds=(0.2, 5), method="bounded", options={"xatol": 1e-6}
    )
    found = fit(np.asarray(jax.jit(sums_of)(logits, label), np.float64))
    assert found.temperature == pytest.approx(expected.x, rel=2e-3)
    assert found.temperature == pytest.approx(2, rel=0.05)  # as the labels were drawn
    assert found.nll_before == pytest.approx(mean_nll(1), rel=1e-5)
    assert found.nll_after == pytest.approx(expected.fun, rel=1e-5)


def test_a_temperature_outside_the_range_is_its_border():
    right, wrong = np.array([[9.0, 0.0]]), np.array([[0.0, 9.0]])
    label = np.array([0], np.uint8)
    for logits, border in ((right, INVERSES[-1]), (wrong, INVERSES[0])):
        sums = np.asarray(sums_of(jnp.asarray(logits, jnp.float32), jnp.asarray(label)), np.float64)
        assert fit(sums).temperature == 1 / border


def test_a_fitted_temperature_is_kept_with_the_run_and_changes_no_label(trained_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    image, _ = shapes.draw("val_000")
    before = load_run(run)
    scores = run / "evaluation/val.json"
    with_one = json.loads(scores.read_text())
    result = run_command("evaluate", f"--workdir={run}", "--fit_temperature")
    assert result.returncode == 0, result.stderr
    kept = json.loads((run / "evaluation/temperature.json").read_text())
    temperature = kept["temperatures"][""]
    assert f"temperature {temperature:g}: NLL" in result.stdout
    assert temperature != 1
    fitted = json.loads(scores.read_text())
    assert f"({BINS} bins, temperature {temperature:g})" in result.stdout
    assert fitted["calibration"]["temperature"] == temperature
    assert fitted.pop("calibration")["ece"] != with_one.pop("calibration")["ece"]
    assert fitted == with_one

    after = load_run(run)
    np.testing.assert_array_equal(after(image), before(image))
    powers = before.probabilities(image).astype(np.float64) ** (1 / temperature)
    tempered = powers / powers.sum(-1, keepdims=True)
    np.testing.assert_allclose(after.probabilities(image), tempered, atol=1e-5)
    flipped = Inference(flip=True)
    np.testing.assert_array_equal(after(image, flipped), before(image, flipped))
    entropy, _ = UncertaintyPredictor(after)(image)[""]
    np.testing.assert_allclose(entropy, -(tempered * np.log(tempered)).sum(-1), atol=1e-5)
    canvas = tuple(round_up(side, 64) for side in image.shape[:2])
    details = DetailPredictor(after, [canvas])(image)[""]
    np.testing.assert_array_equal(details.classes[..., 0], before(image))
    np.testing.assert_allclose(details.probabilities[..., 0] / 255, tempered.max(-1), atol=0.003)

    export, onnx = tmp_path / "exported", tmp_path / "x.onnx"
    for output, more in ((export, []), (onnx, ["--format=onnx"])):
        result = run_command("export", f"--workdir={run}", f"--output={output}", *more)
        assert result.returncode == 0, result.stderr
    assert load_run(export).temperatures == after.temperatures
    assert f'{{"": {temperature}}}'.encode() in onnx.read_bytes()


def test_a_temperature_of_other_weights_is_not_used(trained_run, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    fitted = FittedTemperature({"": 2.0}, "voc, split val, 9 images", 3, "0123456789abcdef")
    fitted.save(temperature_path([str(run)]))
    assert load_run(run).temperatures == {}
    assert "is not used: it was fitted for other weights, of step 3" in capsys.readouterr().out
    for text in (
        "{",
        "[]",
        '{"temperatures": {"": -1}, "fitted_on": "", "step": 1, "weights": ""}',
    ):
        temperature_path([str(run)]).write_text(text)
        with pytest.raises(UserError, match=r"temperature.json cannot be read .*fit again"):
            load_run(run)


@pytest.mark.parametrize("flag", ["--scales=0.5", "--shard=0/2", "--convention=paper"])
def test_what_a_temperature_is_not_fitted_for_is_refused(trained_run, flag):
    result = run_command("evaluate", f"--workdir={trained_run}", "--fit_temperature", flag)
    assert result.returncode == 1
    assert "--fit_temperature cannot be combined with --" in result.stderr
    assert result.stderr.count("\n") == 1
