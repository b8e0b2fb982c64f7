"""FCN-32s → 16s → 8s: each stage begins where the one before it ended (Long et al. 2015, §4.3)."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcn_jax import pretrained
from fcn_jax.config import Config, ModelConfig
from fcn_jax.models.backbones.vgg import VGG16
from fcn_jax.models.build import build_model
from fcn_jax.models.fcn import FCN
from fcn_jax.models.pure_model import PureModel
from fcn_jax.models.upsampling import bilinear_upsample
from fcn_jax.pretrained import Provenance, flatten, model_file


@pytest.mark.parametrize("upsampling", ["fixed", "learned"])
def test_a_stage_begins_with_the_scores_of_the_stage_before(
    tmp_path: Path, randomised: Any, upsampling: str
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 70, 90, 3), np.uint8)

    def features(network: PureModel, variables: Any) -> dict[str, jax.Array]:
        return jax.jit(lambda v, x: network(v, x)[0])(variables, jnp.asarray(image))

    def model(skips: int) -> Any:
        config = ModelConfig(backbone="small", skips=skips, upsampling=upsampling)
        return build_model(config, 6, rngs=nnx.Rngs(0))

    network = PureModel(randomised(lambda: model(0)))
    model_config = ModelConfig(backbone="small", preprocessing="torchvision")
    provenance = Provenance(Config(model=model_config), source="FCN-32s")
    tensors = {name: np.asarray(value) for name, value in flatten(network.variables).items()}
    model_file.save(tmp_path / "fcn32s.safetensors", tensors, provenance)
    before = features(network, network.variables)
    for skips, new in ((1, "head/score16"), (2, "head/score16, head/score8")):
        network = PureModel(model(skips))
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


def test_the_papers_second_stage_begins_as_its_first_ended(randomised: Any) -> None:
    """VGG16 padded by 100: the doubled scores, cropped as the authors' FCN-16s crops them."""

    def network(skips: int) -> FCN:
        backbone = VGG16(padding="paper", fc_features=8, rngs=nnx.Rngs(0))
        return FCN(backbone, 3, skips=skips, upsampling="fixed", rngs=nnx.Rngs(0))

    first = PureModel(randomised(lambda: network(0)))
    second = PureModel(randomised(lambda: network(1)))
    model_config = ModelConfig(backbone="vgg16", preprocessing="caffe")
    provenance = Provenance(Config(model=model_config), source="FCN-32s")
    tensors = {name: np.asarray(value) for name, value in flatten(first.variables).items()}
    variables, _ = pretrained.Weights(Path("run"), provenance, tensors).apply(second.variables)
    for name in ("kernel", "bias"):
        new = variables[0]["head"]["score16"]
        new[name] = jnp.zeros_like(new[name])  # as it starts; here all was drawn at random
    image = np.random.default_rng(0).integers(0, 256, (1, 61, 90, 3), np.uint8)

    def run(network: PureModel, variables: Any) -> dict[str, jax.Array]:
        return jax.jit(lambda v, x: network(v, x)[0])(variables, jnp.asarray(image))

    before, after = run(first, first.variables), run(second, variables)
    score = before["score32"]
    np.testing.assert_array_equal(after["score32"], score)
    full = [2 * (n - 1) + 4 for n in score.shape[1:3]]
    doubled = bilinear_upsample(score, 4, stride=2, crop=0, output_size=full)
    expected = bilinear_upsample(doubled, 32, stride=16, crop=27, output_size=(61, 90))
    np.testing.assert_allclose(after["logits"], expected, atol=1e-5 * np.ptp(expected))
    direct = bilinear_upsample(score, 64, stride=32, crop=19, output_size=(61, 90))
    np.testing.assert_allclose(before["logits"], direct, atol=1e-5 * np.ptp(direct))
