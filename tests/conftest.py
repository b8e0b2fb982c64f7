import ctypes
import gc
import getpass
import importlib.metadata
import importlib.util
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

# Programs are compiled once for all tests, workers and commands, and kept for the next time. JAX
# reads this when it is imported.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(Path(tempfile.gettempdir()) / f"fcn_jax-tests-{getpass.getuser()}"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# Most of the tests' time is that of XLA's compiler, and these halve it. An unknown flag ends the
# process, so other versions get none. `XLA_FLAGS= python -m pytest` tests what users run.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ.setdefault(
        "XLA_FLAGS",
        "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
        "--xla_cpu_parallel_codegen_split_count=1",
    )

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

M = TypeVar("M", bound=nnx.Module)

# A shell ignores Ctrl-C for jobs in the background, and programs inherit that; tests raise it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# GPUs and TPUs round float32 products otherwise; here they are compared with exact ones.
jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(scope="module", autouse=True)
def bounded_memory() -> Iterator[None]:
    """Frees compiled programs after a file's tests if the process holds more than 2 GiB (Linux)."""
    yield
    status = Path("/proc/self/statm")
    if not status.exists():
        return
    pages = int(status.read_text().split()[1])
    if pages * os.sysconf("SC_PAGE_SIZE") > 2 << 30:
        jax.clear_caches()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope="session")
def trained_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny run, for all tests to read: data/, prepared/ and run/.

    `run` was trained for six steps with `small_config(trained_folder)`. Tests that change a run
    copy it; tests that train put their runs into folders of their own.
    """
    from fcn_jax.train import train  # not imported by tests that train nothing
    from tests.own_folder import small_config, write_split_folder

    folder = tmp_path_factory.mktemp("trained")
    write_split_folder(folder / "data")
    train(small_config(folder), folder / "run")
    return folder


@pytest.fixture(scope="session")
def trained_run(trained_folder: Path) -> Path:
    """The run of `trained_folder`."""
    return trained_folder / "run"


@pytest.fixture
def torch() -> ModuleType:
    """PyTorch, the peer that layers, losses and optimizers are compared with."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    torch.set_num_threads(1)  # on busy cores, its threads mostly wait for each other
    return torch


@pytest.fixture(scope="session")
def torchvision() -> ModuleType:
    """torchvision, whose networks are peers."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    from benchmarks.torchvision_import import import_torchvision

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of theirs
        try:
            return import_torchvision()
        except ImportError:
            pytest.skip("torchvision is not installed")


@pytest.fixture(scope="session")
def timm(torchvision: ModuleType) -> ModuleType:
    """Ross Wightman's image models, which import torchvision."""
    return _importorskip("timm")


@pytest.fixture(scope="session")
def torchfcn(torchvision: ModuleType) -> ModuleType:
    """The networks of Kentaro Wada's torchfcn, without its data sets and trainers."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    specification = importlib.util.find_spec("torchfcn")
    if specification is None:
        pytest.skip("torchfcn is not installed")
    sys.modules.setdefault("fcn", ModuleType("fcn"))  # fetches weights
    package = ModuleType("torchfcn")  # its own `__init__` imports data sets and trainers
    package.__path__ = list(specification.submodule_search_locations or ())
    sys.modules["torchfcn"] = package
    return _importorskip("torchfcn.models")


@pytest.fixture(scope="session")
def torchmetrics(torchvision: ModuleType) -> ModuleType:
    """The classification metrics of Lightning's torchmetrics, which imports torchvision."""
    return _importorskip("torchmetrics.functional.classification")


@pytest.fixture(scope="session")
def monai() -> ModuleType:
    """MONAI's sliding windows, which need only PyTorch of MONAI's dependencies."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    return _importorskip("monai.inferers")


def _importorskip(name: str) -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of theirs
        return pytest.importorskip(name, reason=f"{name} is not installed")


@pytest.fixture(scope="session")
def randomised() -> Callable[[Callable[[], M]], M]:
    """Builds a network whose weights are all random: also those that begin at zero or one."""

    def build(network: Callable[[], M]) -> M:
        # Without running the initializers, each of which would be compiled for each shape.
        graph, state = nnx.split(nnx.eval_shape(network))
        random = np.random.default_rng(0)

        def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
            name = path[-1].key
            if name == "kernel":
                values = random.standard_normal(leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))
            elif name in ("scale", "var"):
                values = random.uniform(0.5, 1.5, leaf.shape)
            else:
                values = 0.1 * random.standard_normal(leaf.shape)
            return jnp.asarray(values, leaf.dtype)

        values = jax.tree_util.tree_map_with_path(draw, nnx.to_pure_dict(state))
        nnx.replace_by_pure_dict(state, values)
        return nnx.merge(graph, state)

    return build
