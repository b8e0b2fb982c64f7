"""FCN-32s → 16s → 8s: each stage begins where the one before it ended (Long et al. 2015, §4.3)."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcn_jax import pretrained
from fcn_jax.config import ModelConfig
from fcn_jax.models.build import build
from fcn_jax.models.upsampling import bilinear_upsample
from fcn_jax.pretrained import flat, saved
from fcn_jax.step import Network


@pytest.mark.parametrize("upsampling", ["fixed", "learned"])
def test_a_stage_begins_with_the_scores_of_the_stage_before(
    tmp_path: Path, randomised: Any, upsampling: str
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 70, 90, 3), np.uint8)

    def features(network: Network, variables: Any) -> dict[str, jax.Array]:
        return jax.jit(lambda v, x: network(v, x)[0])(variables, jnp.asarray(image))

    def model(skips: int) -> Any:
        config = ModelConfig(backbone="small", skips=skips, upsampling=upsampling)
        return build(config, 6, rngs=nnx.Rngs(0))

    network = Network(randomised(lambda: model(0)))
    about = saved.About("FCN-32s", {"model": {"backbone": "small", "preprocessing": "torchvision"}})
    tensors = {name: np.asarray(value) for name, value in flat(network.variables).items()}
    saved.save(tmp_path / "fcn32s.safetensors", tensors, about)
    before = features(network, network.variables)
    for skips, new in ((1, "head/score16"), (2, "head/score16, head/score8")):
        network = Network(model(skips))
        variables, report = pretrained.read(tmp_path / "fcn32s.safetensors").apply(
            network.variables
        )
        assert new in report
        values = features(network, variables)
        np.testing.assert_array_equal(values["score32"], before["score32"])
        # The new layers score zero, so what is left is one bilinear filter after the other.
        expected, stride, size = before["score32"], 32, (70, 90)
        for finer in (16, 8)[:skips]:
            coarse = [-(-n // finer) for n in size]
            expected = bilinear_upsample(expected, 3, stride=2, crop=1, output_size=coarse)
            stride = finer
        expected = bilinear_upsample(
            expected, 2 * stride - 1, stride=stride, crop=stride - 1, output_size=size
        )
        np.testing.assert_allclose(values["logits"], expected, atol=1e-5 * np.ptp(expected))
