"""Values and gradients of losses beside those of PyTorch and of projects that use it."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax.training.losses import (
    CrossEntropy,
    Dice,
    GeneralizedDice,
    Jaccard,
    Loss,
    LovaszSoftmax,
    OnlineHardExamples,
    TopK,
    Tversky,
)
from tests.peer_code import definitions

NUM_CLASSES = 5


@pytest.fixture
def smp(torch: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The losses of segmentation_models.pytorch, without its networks, which need timm."""
    name = "segmentation_models_pytorch"
    spec = importlib.util.find_spec(name)
    if spec is None:
        pytest.skip("segmentation_models.pytorch is not installed")
    package = ModuleType(name)
    package.__path__ = list(spec.submodule_search_locations or ())
    monkeypatch.setitem(sys.modules, name, package)
    return importlib.import_module(f"{name}.losses")


@pytest.fixture
def monai(torch: ModuleType) -> ModuleType:
    return pytest.importorskip("monai.losses", reason="MONAI is not installed")


def batch(ignored: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits (2, 6, 7, 5) and labels, of which the last class is absent and a share is 255."""
    random = np.random.default_rng(0)
    logits = 2 * random.standard_normal((2, 6, 7, NUM_CLASSES)).astype(np.float32)
    label = random.integers(0, NUM_CLASSES - 1, (2, 6, 7))
    label[random.random(label.shape) < ignored] = 255
    return logits, label


def check(
    torch: ModuleType, loss: Loss, peer: Callable[[Any, Any], Any], *, ignored: float = 0.0
) -> None:
    """Checks that both give the same loss and the same gradient."""
    logits, label = batch(ignored)
    tensor = torch.tensor(np.moveaxis(logits, -1, 1).copy(), requires_grad=True)
    expected = peer(tensor, torch.tensor(label))
    expected.backward()
    wanted = np.moveaxis(tensor.grad.numpy(), 1, -1)
    value, gradient = jax.jit(jax.value_and_grad(loss))(logits, label)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, wanted, atol=1e-5 * np.abs(wanted).max(), rtol=1e-4)


@pytest.mark.parametrize("per_image", [False, True])
def test_monai(torch: ModuleType, monai: ModuleType, per_image: bool) -> None:
    """Its Dice and Jaccard have twice the smoothing in the Jaccard's numerator and denominator."""
    settings = {"softmax": True, "to_onehot_y": True, "batch": not per_image}

    def peer(make: Any, smooth: float, **others: Any) -> Callable[[Any, Any], Any]:
        loss = make(smooth_nr=smooth, smooth_dr=smooth, **settings, **others)
        return lambda logits, label: loss(logits, label[:, None])

    ours: dict[str, Any] = {"smooth": 0.3, "per_image": per_image}
    check(torch, Dice(**ours), peer(monai.DiceLoss, 0.3))
    check(torch, Jaccard(**ours), peer(monai.DiceLoss, 0.6, jaccard=True))
    tversky = peer(monai.TverskyLoss, 0.3, alpha=0.2, beta=0.6)
    check(torch, Tversky(alpha=0.2, beta=0.6, **ours), tversky)
    weights = jnp.asarray([1.0, 2, 0.5, 1, 0.5])  # MONAI divides by their number, not their sum
    check(torch, Dice(weights, **ours), peer(monai.DiceLoss, 0.3, weight=weights.tolist()))


@pytest.mark.parametrize("per_image", [False, True])
def test_monais_generalised_dice(torch: ModuleType, monai: ModuleType, per_image: bool) -> None:
    """Its smoothing is for weights 1 / count², ours for weights relative to the largest."""
    loss = monai.GeneralizedDiceLoss(
        softmax=True, to_onehot_y=True, batch=not per_image, smooth_nr=1e-9, smooth_dr=1e-9
    )
    ours = GeneralizedDice(smooth=1e-8, per_image=per_image)
    check(torch, ours, lambda logits, label: loss(logits, label[:, None]))


def test_monais_focal_loss(torch: ModuleType, monai: ModuleType) -> None:
    from fcn_jax.training.losses import Focal

    loss = monai.FocalLoss(use_softmax=True, to_onehot_y=True, gamma=1.5)
    # It divides by the number of classes too.
    peer = lambda logits, label: NUM_CLASSES * loss(logits, label[:, None])  # noqa: E731
    check(torch, Focal(gamma=1.5), peer)


@pytest.mark.parametrize("ignored", [0.0, 0.3])
def test_segmentation_models_pytorch(torch: ModuleType, smp: ModuleType, ignored: float) -> None:
    """Its Dice has half the smoothing in the Tversky's numerator and denominator."""
    settings = {"mode": "multiclass", "ignore_index": 255}

    ours: dict[str, Any] = {"smooth": 0.4, "skip_absent": True}
    weights = [1.0, 2, 0.5, 3, 0.5]
    dice = smp.DiceLoss(smooth=0.2, class_weights=weights, **settings)
    check(torch, Dice(jnp.asarray(weights), **ours), dice, ignored=ignored)
    tversky = smp.TverskyLoss(smooth=0.4, alpha=0.2, beta=0.6, **settings)
    check(torch, Tversky(alpha=0.2, beta=0.6, **ours), tversky, ignored=ignored)
    for per_image in (False, True):
        lovasz = smp.LovaszLoss(per_image=per_image, **settings)
        check(torch, LovaszSoftmax(per_image=per_image), lovasz, ignored=ignored)


def test_the_jaccard_of_segmentation_models_pytorch(torch: ModuleType, smp: ModuleType) -> None:
    loss = smp.JaccardLoss(mode="multiclass", smooth=0.4)
    check(torch, Jaccard(smooth=0.4, skip_absent=True), loss)


@pytest.mark.parametrize("ignored", [0.0, 0.3])
def test_pytorchs_label_smoothing(torch: ModuleType, ignored: float) -> None:
    for weights in (None, [1.0, 2, 0.5, 3, 0.5]):
        loss = torch.nn.CrossEntropyLoss(
            weight=None if weights is None else torch.tensor(weights),
            ignore_index=255,
            label_smoothing=0.2,
        )
        ours = CrossEntropy(weights, label_smoothing=0.2)
        check(torch, ours, loss, ignored=ignored)


@pytest.mark.filterwarnings("ignore:size_average and reduce")
def test_nnunets_top_k(torch: ModuleType) -> None:
    """It takes the share of all pixels, ignored ones included: none is here."""
    needed = {"torch": torch, "nn": torch.nn, "np": np}
    names = {"RobustCrossEntropyLoss", "TopKLoss"}
    peer = definitions("nnunetv2", "training/loss/robust_ce_loss.py", names, needed)
    loss = peer.TopKLoss(k=30)
    check(torch, TopK(share=0.3), lambda logits, label: loss(logits, label[:, None]))


@pytest.mark.parametrize("ignored", [0.0, 0.3])
@pytest.mark.parametrize(("thresh", "min_kept"), [(0.1, 20), (0.3, 5), (0.7, 100)])
def test_mmsegmentations_ohem(
    torch: ModuleType, thresh: float, min_kept: int, ignored: float
) -> None:
    """Its sampler chooses the pixels; ours is the mean over these."""
    registry = SimpleNamespace(register_module=lambda: lambda sampler: sampler)
    needed = {
        "torch": torch,
        "F": torch.nn.functional,
        "BasePixelSampler": object,
        "PIXEL_SAMPLERS": registry,
    }
    path = "structures/sampler/ohem_pixel_sampler.py"
    peer = definitions("mmseg", path, {"OHEMPixelSampler"}, needed)
    head = SimpleNamespace(ignore_index=255)
    sampler = peer.OHEMPixelSampler(head, thresh=thresh, min_kept=min_kept)

    def loss(logits: Any, label: Any) -> Any:
        chosen = sampler.sample(logits, label[:, None])
        assert 0 < chosen.sum() < chosen.numel()
        settings = {"ignore_index": 255, "reduction": "none"}
        losses = torch.nn.functional.cross_entropy(logits, label, **settings)
        return (losses * chosen).sum() / chosen.sum()

    check(torch, OnlineHardExamples(thresh=thresh, min_kept=min_kept), loss, ignored=ignored)
