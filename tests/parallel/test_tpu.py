"""Topologies of absent TPUs."""

import importlib.util

import pytest

from fcn_jax.errors import ArgumentError, UserError
from fcn_jax.parallel.tpu import topology_mesh


@pytest.mark.parametrize("topology", ["v5e", "v5e:", "v9:2x2", "v5e:2y2", "2x2", "v5e:2x2x2x2", ""])
def test_other_topologies_are_refused(topology: str) -> None:
    with pytest.raises(ArgumentError, match=r"must be CHIP:AxB, .* a chip of v5e, v5p, v6e"):
        topology_mesh(topology)


def test_without_the_compiler_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[compile\]'"):
        topology_mesh("v5e:2x2")
