"""Losses against hand-worked numbers, NumPy in float64, and PyTorch."""

import math
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax import registry
from fcn_jax.config import LossConfig
from fcn_jax.errors import ArgumentError
from fcn_jax.training.losses import (
    CrossEntropy,
    Dice,
    Focal,
    GeneralizedDice,
    Jaccard,
    Loss,
    LovaszSoftmax,
    OnlineHardExamples,
    TopK,
    Tversky,
    build_losses,
)

LOSSES = [
    CrossEntropy,
    Focal,
    Dice,
    GeneralizedDice,
    Jaccard,
    Tversky,
    OnlineHardExamples,
    TopK,
    LovaszSoftmax,
]
CLASS_WEIGHTS = np.array([0.5, 2, 0, 3, 1])

# Softmax of (log 3, 0) is (3/4, 1/4).
LOGITS = jnp.asarray([[[[math.log(3), 0.0], [0.0, 0.0], [5.0, -5.0]]]])
LABEL = jnp.asarray([[[0, 1, 255]]], jnp.int32)


def test_cross_entropy_by_hand() -> None:
    loss, weight = CrossEntropy().sums(LOGITS, LABEL)
    np.testing.assert_allclose(loss, math.log(4 / 3) + math.log(2), rtol=1e-6)
    assert weight == 2
    weighted = CrossEntropy(jnp.asarray([2.0, 0.5]))
    loss, weight = weighted.sums(LOGITS, LABEL)
    np.testing.assert_allclose(loss, 2 * math.log(4 / 3) + 0.5 * math.log(2), rtol=1e-6)
    assert weight == 2.5
    np.testing.assert_allclose(weighted(LOGITS, LABEL), loss / 2.5, rtol=1e-6)


def test_focal_by_hand() -> None:
    # Equation 5 of the paper: α (1 − p)^γ times cross-entropy.
    loss, weight = Focal(jnp.asarray([2.0, 0.5]), gamma=3).sums(LOGITS, LABEL)
    expected = 2 * (1 / 4) ** 3 * math.log(4 / 3) + 0.5 * (1 / 2) ** 3 * math.log(2)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert weight == 2.5
    assert Focal(gamma=0)(LOGITS, LABEL) == CrossEntropy()(LOGITS, LABEL)


def test_dice_by_hand() -> None:
    # Σ p·g, Σ p and Σ g of class 0: 3/4, 3/4 + 1/2, 1; of class 1: 1/2, 1/4 + 1/2, 1.
    sums = Dice().sums(LOGITS, LABEL)
    np.testing.assert_allclose(sums, [[3 / 4, 1 / 2], [5 / 4, 3 / 4], [1, 1]], rtol=1e-6)
    first, second = (1.5 + 1) / (9 / 4 + 1), (1 + 1) / (7 / 4 + 1)
    loss = Dice(smooth=1)(LOGITS, LABEL)
    np.testing.assert_allclose(loss, 1 - (first + second) / 2, rtol=1e-6)
    weighted = Dice(jnp.asarray([3.0, 1.0]), smooth=1)
    np.testing.assert_allclose(weighted(LOGITS, LABEL), 1 - (3 * first + second) / 4, rtol=1e-6)


def numpy_value(name: str, logits: np.ndarray, label: np.ndarray, weights: np.ndarray) -> float:
    """The losses by their formulas, in float64; the options are those of OPTIONS."""
    name, per_image, _ = name.partition(" per image")
    if per_image:
        images = zip(logits, label, strict=True)
        return np.mean(
            [numpy_value(name, one[None], truth[None], weights) for one, truth in images]
        )
    valid = label != 255
    target = label[valid]
    exponentials = np.exp(logits[valid])
    probabilities = exponentials / exponentials.sum(-1, keepdims=True)
    truth = np.eye(logits.shape[-1])[target]
    of_truth = (probabilities * truth).sum(-1)
    both, predicted, present = (probabilities * truth).sum(0), probabilities.sum(0), truth.sum(0)
    if name in ("dice", "jaccard", "tversky", "skip_absent"):
        false_positive, false_negative = predicted - both, present - both
        alpha, beta = {"jaccard": (1, 1), "tversky": (0.2, 0.6)}.get(name, (0.5, 0.5))
        smooth = SMOOTH if name in ("jaccard", "tversky") else SMOOTH / 2
        overlap = both + alpha * false_positive + beta * false_negative + smooth
        coefficients = (both + smooth) / overlap
        if name == "skip_absent":
            coefficients[present == 0] = 1
        return 1 - (weights * coefficients).sum() / weights.sum()
    if name == "generalized_dice":
        inverse = np.array([1 / count**2 if count else 0 for count in present])
        inverse[present == 0] = inverse.max()
        inverse *= weights / inverse.max()
        overlap = 2 * (inverse * both).sum() + SMOOTH
        return 1 - overlap / ((inverse * (predicted + present)).sum() + SMOOTH)
    if name == "lovasz":
        losses = []
        for index in np.flatnonzero(present):
            errors = np.abs(truth[:, index] - probabilities[:, index])
            order = np.argsort(-errors)
            wrong = [truth[order, index][:n].sum() for n in range(len(order) + 1)]
            false = [n - count for n, count in enumerate(wrong)]
            jaccard_losses = [
                1 - (present[index] - count) / (present[index] + extra)
                for count, extra in zip(wrong, false, strict=True)
            ]
            losses.append((errors[order] * np.diff(jaccard_losses)).sum())
        of_present = weights[present > 0]
        return (of_present * losses).sum() / of_present.sum()
    losses = -np.log(of_truth)
    if name == "focal":
        losses *= (1 - of_truth) ** 1.5
    chosen = np.ones(len(target), bool)
    if name == "ohem":
        chosen = of_truth < max(np.sort(of_truth)[min(4 * len(label), len(target) - 1)], 0.2)
    if name == "topk":
        chosen = np.zeros(len(target), bool)
        chosen[np.argsort(-losses * weights[target])[: int(0.3 * len(target))]] = True
    weight = weights[target] * chosen
    if name == "label_smoothing":
        uniform = -(np.log(probabilities) * weights).mean(-1)
        return ((1 - 0.1) * losses * weight + 0.1 * uniform).sum() / weight.sum()
    return (losses * weight).sum() / weight.sum()


SMOOTH = 0.5
PER_IMAGE = f"smooth={SMOOTH}", "per_image=true"
OPTIONS = {
    "cross_entropy": (),
    "label_smoothing": ("label_smoothing=0.1",),
    "focal": ("gamma=1.5",),
    "dice": (f"smooth={SMOOTH}",),
    "dice per image": PER_IMAGE,
    "skip_absent": (f"smooth={SMOOTH}", "skip_absent=1"),
    "skip_absent per image": (*PER_IMAGE, "skip_absent=1"),
    "generalized_dice": (f"smooth={SMOOTH}",),
    "generalized_dice per image": PER_IMAGE,
    "jaccard": (f"smooth={SMOOTH}",),
    "tversky": (f"smooth={SMOOTH}", "alpha=0.2", "beta=0.6"),
    "tversky per image": (*PER_IMAGE, "alpha=0.2", "beta=0.6"),
    "ohem": ("thresh=0.2", "min_kept=4"),
    "topk": ("share=0.3",),
    "lovasz": (),
    "lovasz per image": ("per_image=1",),
}
REGISTERED = {"label_smoothing": "cross_entropy", "skip_absent": "dice"}
"""Names of variants in the tests, and the names of their losses."""


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_values_and_gradients_are_numpys(name: str, weighted: bool) -> None:
    """The gradients are central differences of the NumPy formula, in float64.

    The last class is in the first image alone, and the third in none.
    """
    random = np.random.default_rng(0)
    logits = 2 * random.standard_normal((2, 3, 4, 5))
    label = random.choice([0, 1, 3, 4], (2, 3, 4))
    label[1][label[1] == 4] = 0
    label[random.random(label.shape) < 0.3] = 255
    weights = CLASS_WEIGHTS if weighted else np.ones(5)
    given = {"": jnp.asarray(CLASS_WEIGHTS, jnp.float32)} if weighted else {}
    variant = name.removesuffix(" per image")
    config = LossConfig(names=(REGISTERED.get(variant, variant),), options=OPTIONS[name])
    loss = build_losses(config, ("",), given)[""]
    value, gradient = jax.jit(jax.value_and_grad(loss))(
        jnp.asarray(logits, jnp.float32), jnp.asarray(label, jnp.uint8)
    )
    np.testing.assert_allclose(value, numpy_value(name, logits, label, weights), rtol=1e-5)
    expected = np.zeros_like(logits)
    for index in np.ndindex(logits.shape):
        step = np.zeros_like(logits)
        step[index] = 1e-5
        above = numpy_value(name, logits + step, label, weights)
        expected[index] = (above - numpy_value(name, logits - step, label, weights)) / 2e-5
    np.testing.assert_allclose(gradient, expected, atol=1e-5 * np.abs(expected).max(), rtol=1e-4)


def test_losses_are_added_up_with_weights() -> None:
    config = LossConfig(names=("cross_entropy", "dice"), weights=(2.0, 0.5), options=("smooth=1",))
    expected = 2 * CrossEntropy()(LOGITS, LABEL) + 0.5 * Dice(smooth=1)(LOGITS, LABEL)
    np.testing.assert_allclose(build_losses(config, ("",), {})[""](LOGITS, LABEL), expected)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("normalization", ["mean", "sum"])
def test_cross_entropy_is_pytorchs(torch: ModuleType, normalization: str, weighted: bool) -> None:
    random = np.random.default_rng(0)
    logits = 5 * random.standard_normal((2, 6, 7, 21)).astype(np.float32)
    label = random.integers(0, 21, (2, 6, 7))
    label[random.random(label.shape) < 0.3] = 255
    class_weights = random.uniform(0.2, 3, 21).astype(np.float32) if weighted else None

    tensor = torch.tensor(np.moveaxis(logits, -1, 1).copy(), requires_grad=True)
    expected = torch.nn.functional.cross_entropy(
        tensor,
        torch.tensor(label),
        weight=None if class_weights is None else torch.tensor(class_weights),
        ignore_index=255,
        reduction=normalization,
    )
    expected.backward()
    loss = CrossEntropy(None if class_weights is None else jnp.asarray(class_weights))

    def run(logits: jax.Array) -> jax.Array:
        sums = loss.sums(logits, jnp.asarray(label, jnp.uint8))
        return loss.value(sums) if normalization == "mean" else sums[0]

    value, gradient = jax.value_and_grad(run)(jnp.asarray(logits))
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, np.moveaxis(tensor.grad.numpy(), 1, -1), atol=1e-6)


@pytest.mark.parametrize(
    "loss",
    [
        CrossEntropy(),
        CrossEntropy(label_smoothing=0.1),
        Focal(),
        Focal(gamma=0.5),
        Dice(),
        GeneralizedDice(),
        Jaccard(),
        Tversky(),
        OnlineHardExamples(),
        TopK(),
        LovaszSoftmax(),
    ],
)
def test_large_logits_do_not_overflow(loss: Loss) -> None:
    logits = jnp.asarray([[[[1e4, 0.0]]]])
    if isinstance(loss, CrossEntropy) and not loss.label_smoothing:
        assert loss(logits, jnp.asarray([[[1]]])) == 1e4
    if not getattr(loss, "label_smoothing", 0):
        assert loss(logits, jnp.asarray([[[0]]])) == pytest.approx(0, abs=1e-4)
    for label in (0, 1):
        assert np.isfinite(jax.grad(loss)(logits, jnp.asarray([[[label]]]))).all()


@pytest.mark.parametrize("weights", [None, jnp.ones((4,))])
@pytest.mark.parametrize("make", LOSSES)
def test_a_batch_of_ignored_pixels_gives_zero_and_no_gradient(make: Any, weights: Any) -> None:
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((1, 3, 3, 4)), jnp.float32)
    label = jnp.full((1, 3, 3), 255, jnp.uint8)
    loss, gradient = jax.value_and_grad(make(weights))(logits, label)
    assert loss == 0
    assert not np.any(gradient)


@pytest.mark.parametrize("make", LOSSES)
def test_labels_of_another_shape_do_not_broadcast(make: Any) -> None:
    logits, label = jnp.zeros((1, 2, 3, 4)), jnp.zeros((1, 2, 3, 1), jnp.int32)
    for run in (make(), make().sums, make(jnp.ones(4))):
        with pytest.raises(ValueError, match=r"`label` \(of shape \(1, 2, 3, 1\)\) must have"):
            run(logits, label)


def test_class_weights_may_be_a_list() -> None:
    expected = CrossEntropy(jnp.asarray([2.0, 0.5]))(LOGITS, LABEL)
    assert CrossEntropy([2, 0.5])(LOGITS, LABEL) == expected


def test_each_label_map_has_its_own_weights() -> None:
    config = LossConfig(names=("focal",), options=("gamma=0.5",))
    losses = build_losses(config, ("a", "b"), {"b": jnp.ones(3)})
    ((first,), (second,)) = (losses[name].losses for name in ("a", "b"))
    assert isinstance(first, Focal)
    assert (first.gamma, first.class_weights) == (0.5, None)
    assert second.class_weights is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"names": ("focall",)}, r"loss\.names \(=focall\) must be .*; did you mean focal\?"),
        ({"options": ("gamma=1",)}, r"'gamma' that loss\.names=cross_entropy does not take: label"),
        ({"names": ("focal",), "options": ("beta=1",)}, r"'beta' that loss\.names=focal .*: gamma"),
        (
            {"names": ("focal", "dice"), "options": ("dice.gamma=1",)},
            r"'dice\.gamma' that loss\.names=focal,dice does not take: gamma, smooth, per_image",
        ),
        (
            {"names": ("focal",), "options": ("gamma",)},
            r"loss\.options \(=gamma\) must be name=num",
        ),
        ({"names": ("focal",), "options": ("gamma=-1",)}, r"used: gamma \(=-1\.0\) must be at lea"),
        (
            {"names": ("dice",), "options": ("smooth=inf",)},
            r"smooth=inf\) must be .* finite numbers",
        ),
        ({"names": ("dice",), "options": ("smooth=0",)}, r"used: smooth \(=0\.0\) must be above 0"),
        (
            {"names": ("dice",), "options": ("per_image=2",)},
            r"\(=per_image=2\) must be .*name=true",
        ),
        ({"names": ("tversky",), "options": ("alpha=-1",)}, r"alpha \(=-1\.0\) and beta \(=0\.7\)"),
        ({"names": ("ohem",), "options": ("thresh=7",)}, r"thresh \(=7\.0\) must be in 0…1"),
        ({"names": ("ohem",), "options": ("min_kept=.5",)}, r"min_kept \(=0\.5\) must be a whole"),
        ({"names": ("topk",), "options": ("share=0",)}, r"share \(=0\.0\) must be above 0"),
        ({"options": ("label_smoothing=2",)}, r"label_smoothing \(=2\.0\) must be in 0…1"),
        (
            {"names": ("focal", "dice"), "normalization": "sum"},
            r"must be mean with loss\.names=dice",
        ),
    ],
)
def test_settings_that_cannot_be_used(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        build_losses(LossConfig(**settings), ("",), {})


@pytest.mark.parametrize("make", [CrossEntropy, Dice])
def test_class_weights_of_other_classes_are_refused(make: Any) -> None:
    logits, label = jnp.zeros((2, 3, 4)), jnp.zeros((2, 3), jnp.int32)
    with pytest.raises(
        ArgumentError, match=r"class_weights \(=3\) must be 4 numbers, one for each"
    ):
        make(class_weights=[1.0, 2.0, 3.0])(logits, label)


def test_the_names_of_the_losses() -> None:
    assert registry.losses.names[:9] == (
        "cross_entropy",
        "focal",
        "dice",
        "generalized_dice",
        "jaccard",
        "tversky",
        "ohem",
        "topk",
        "lovasz",
    )
