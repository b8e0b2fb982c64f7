"""What is kept of an image for the backward pass: by hand of one layer, and of whole networks."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from benchmarks.kept import kept_of_an_image
from benchmarks.workloads import Workload, workloads
from fcn_jax.models.feature_map import FeatureMap
from fcn_jax.models.layers import relu

BY_BACKBONE = {w.config.model.backbone: w for w in workloads(small=True)}
SIDE, FEATURES = 8, 4


class OneLayer:
    """A 3×3 convolution to four features and a rectifier; its loss is the sum of their squares."""

    variables = ({"kernel": jax.ShapeDtypeStruct((3, 3, 3, FEATURES), jnp.float32)}, {})

    def logits_in_blocks(self, variables: Any, image: jax.Array, *, train: bool) -> Any:
        assert train
        kernel = variables[0]["kernel"]
        convolved = lax.conv_general_dilated(
            image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        features = relu(FeatureMap(convolved)).values
        return {
            "": SimpleNamespace(
                total=lambda loss, label: (jnp.sum(features * features), label.size),
                layout=SimpleNamespace(dealt=lambda label, void: label),
            )
        }, None


def test_of_one_layer_ours_keeps_its_input_and_the_result() -> None:
    workload: Any = SimpleNamespace(
        network=OneLayer,
        crop_px=(SIDE, SIDE),
    )
    # The result is kept once, for the rectifier and for the square.
    assert kept_of_an_image(workload) == 4 * SIDE**2 * 3 + 4 * SIDE**2 * FEATURES


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
def test_of_one_layer_pytorch_keeps_its_input_the_result_and_the_losss(
    torch: Any, monkeypatch: pytest.MonkeyPatch, dtype: str, size: int
) -> None:
    from benchmarks import torch_kept

    class Layer(torch.nn.Module):
        def __init__(self, workload: Workload):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, FEATURES, 3, padding=1)

        def forward(self, image: Any) -> dict[str, Any]:
            return {"out": torch.relu(self.conv(image))}

    monkeypatch.setitem(torch_kept.NETWORKS, "squeezenet", Layer)
    workload = BY_BACKBONE["squeezenet"].changed(
        augment__crop_px=(SIDE, SIDE), model__compute_dtype=dtype
    )
    image, features = size * SIDE**2 * 3, size * SIDE**2 * FEATURES
    log_probabilities, labels = 4 * SIDE**2 * FEATURES, 8 * SIDE**2
    expected = image + features + log_probabilities + labels
    assert torch_kept.kept_of_an_image(workload) == expected


@pytest.mark.parametrize("backbone", ["resnet50", "vgg16"])
def test_half_the_precision_keeps_half_and_rematerialized_less(backbone: str) -> None:
    single = BY_BACKBONE[backbone].changed(model__compute_dtype="float32")
    kept = kept_of_an_image(single)
    # Masks, and what is of the logits, are the same in both.
    half = kept_of_an_image(single.changed(model__compute_dtype="bfloat16"))
    assert 2 * half == pytest.approx(kept, rel=0.05)
    assert kept_of_an_image(single.changed(model__remat=True)) < 0.5 * kept
