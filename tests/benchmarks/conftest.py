from collections.abc import Iterator
from types import ModuleType

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from benchmarks.settings import Settings
from tests.benchmarks.tiny import tiny_workload, torch_two_layers
from tests.own_folder import small_config, write_split_folder


@pytest.fixture(scope="package", autouse=True)
def _compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Several suites run the same step."""
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The tiny workload, a second one for GPUs, and seven images, two of them to score."""
    folder = tmp_path_factory.mktemp("images")
    write_split_folder(folder / "data")
    workloads = (tiny_workload(), tiny_workload(name="large", for_gpu=True))
    return Settings(workloads, small=True, data=small_config(folder).data)


@pytest.fixture
def settings_with_torch(
    settings: Settings, torch: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    from benchmarks import torch_networks
    from benchmarks.torch_peer import Peer

    monkeypatch.setitem(torch_networks.NETWORKS, "small", torch_two_layers)
    return Settings(settings.workloads, small=True, data=settings.data, peer=Peer())
