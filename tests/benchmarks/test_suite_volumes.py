"""The suite of three axes: what is compared computes the same."""

import numpy as np
import pytest

from benchmarks import suite_volumes
from benchmarks.measuring import Contender


def result(contender: object) -> np.ndarray:
    assert isinstance(contender, Contender)
    return np.asarray(contender.call())


def test_convolutions_and_upsampling_are_those_of_lax_and_pytorch() -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    from benchmarks.torch_peer import Peer

    peer = Peer()
    made = suite_volumes.convolutions(3, 2, (4, 5, 6), False, peer)
    ours = result(made["fcn_jax"])
    np.testing.assert_allclose(ours, result(made["lax.conv"]), rtol=1e-4, atol=1e-4)
    theirs = made["PyTorch (contiguous)"]
    assert isinstance(theirs, Contender)
    np.testing.assert_allclose(
        ours, np.moveaxis(theirs.call().detach().numpy(), 1, -1), rtol=1e-4, atol=1e-4
    )
    for layer in ((2, 2, 0, 3, 2), (4, 2, 1, 3, 2)):
        made = suite_volumes.upsamplings(*layer, (4, 6, 4), False, peer)
        theirs = made["PyTorch (channels_last)"]
        assert isinstance(theirs, Contender)
        expected = np.moveaxis(theirs.call().detach().numpy(), 1, -1)
        np.testing.assert_allclose(result(made["fcn_jax"]), expected, rtol=1e-4, atol=1e-4)
        # lax flips the kernel, so that its result is another one of the same shape.
        assert result(made["lax.conv_transpose"]).shape == expected.shape
