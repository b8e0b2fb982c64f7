from types import ModuleType

import pytest


@pytest.fixture
def torch() -> ModuleType:
    """PyTorch, the peer that layers, losses and optimizers are compared with."""
    return pytest.importorskip("torch", reason="PyTorch is not installed")
