"""The training step as a suite measures it, ours and PyTorch's."""

from types import ModuleType

import pytest

from benchmarks import suite_train_step
from benchmarks.measuring import run_case
from benchmarks.settings import Settings
from benchmarks.workloads import workloads


def test_the_training_step_is_compared_with_pytorchs(settings_with_torch: Settings) -> None:
    cases = suite_train_step.cases(settings_with_torch)
    ours, theirs, on_crops, large = (row for case in cases for row in run_case("s", case, 1))
    assert ours.contender == "fcn_jax"
    assert theirs.contender.startswith("PyTorch (")
    assert on_crops.contender.startswith("PyTorch, crops made before (")
    for row in (ours, theirs, on_crops):
        assert row.median
        assert row.images_per_second == pytest.approx(2 / row.median)
    assert theirs.ratio == theirs.median / ours.median
    # Three passes over conv2, which on 2 images makes 8² outputs of 6 from 9 · 4, less the border.
    assert ours.flops > 3 * 2 * 2 * (8 * 3 - 1) ** 2 * 4 * 6
    assert large.note == "not measured: no GPU (--all runs it nevertheless)"


def test_cases_are_named_by_network_crop_batch_and_dtype(torch: ModuleType) -> None:
    cases = suite_train_step.cases(Settings(workloads(small=False)))
    assert [case.name for case in cases] == [
        "FCN-8s SqueezeNet 320×320 batch 8 float32",
        "FCN-32s ResNet-18 320×480 batch 8 float32",
        "FCN-8s VGG16 small crops 224×224 batch 2 float32",
        "U-Net 256×256 batch 4 float32",
        "FCN-ResNet-50 480×480 batch 16 bfloat16",
        "FCN-8s VGG16 500×500 batch 8 bfloat16",
    ]
