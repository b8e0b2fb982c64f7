import math
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax.training.losses import cross_entropy


def test_numbers_by_hand() -> None:
    # Softmax of (log 3, 0) is (3/4, 1/4).
    logits = jnp.asarray([[[[math.log(3), 0.0], [0.0, 0.0], [5.0, -5.0]]]])
    label = jnp.asarray([[[0, 1, 255]]], jnp.int32)
    loss, weight = cross_entropy(logits, label)
    np.testing.assert_allclose(loss, math.log(4 / 3) + math.log(2), rtol=1e-6)
    assert weight == 2
    loss, weight = cross_entropy(logits, label, jnp.asarray([2.0, 0.5]))
    np.testing.assert_allclose(loss, 2 * math.log(4 / 3) + 0.5 * math.log(2), rtol=1e-6)
    assert weight == 2.5


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

    def run(logits: jax.Array) -> jax.Array:
        loss, weight = cross_entropy(
            logits,
            jnp.asarray(label, jnp.uint8),
            None if class_weights is None else jnp.asarray(class_weights),
        )
        return loss / weight if normalization == "mean" else loss

    loss, gradient = jax.value_and_grad(run)(jnp.asarray(logits))
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, np.moveaxis(tensor.grad.numpy(), 1, -1), atol=1e-6)


def test_large_logits_do_not_overflow() -> None:
    logits = jnp.asarray([[[[1e4, 0.0]]]])
    assert cross_entropy(logits, jnp.asarray([[[1]]]))[0] == 1e4
    assert cross_entropy(logits, jnp.asarray([[[0]]]))[0] == 0


def test_a_batch_of_void_gives_zero_and_no_gradient() -> None:
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((1, 3, 3, 4)), jnp.float32)
    label = jnp.full((1, 3, 3), 255, jnp.uint8)
    weights = jnp.ones((4,))
    (loss, weight), pull_back = jax.vjp(lambda x: cross_entropy(x, label, weights), logits)
    assert loss == 0
    assert weight == 0
    assert not np.any(pull_back((jnp.ones(()), jnp.ones(())))[0])
