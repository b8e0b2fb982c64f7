"""The options of the command line, for the suites."""

import dataclasses
import functools
import re
from typing import TYPE_CHECKING

import jax

from benchmarks.measuring import NotMeasuredError
from benchmarks.workloads import Workload
from fcn_jax.config import DataConfig
from fcn_jax.data.datasets import Dataset, open_dataset
from fcn_jax.errors import UserError

if TYPE_CHECKING:
    from benchmarks.torch_peer import Peer


@dataclasses.dataclass(frozen=True)
class Settings:
    """The networks and images to measure, and the sizes.

    Attributes:
        workloads: the networks; suites that measure a single one take the first.
        small: whether to use tiny sizes, which only show that everything runs.
        gpu_cases: whether to run what is meant for a GPU: there is one, or --all asks for it.
        data: the images of the suites that read some.
        peer: PyTorch, if it is to be compared with.
    """

    workloads: tuple[Workload, ...]
    small: bool = False
    gpu_cases: bool = False
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    peer: "Peer | None" = None

    def check_runs(self, workload: Workload) -> None:
        """Raises NotMeasuredError for a workload that is meant for another device."""
        if workload.for_gpu and not self.gpu_cases:
            raise NotMeasuredError("no GPU (--all runs it nevertheless)")
        if workload.for_cpu and on_gpu():
            raise NotMeasuredError("it is meant for a CPU")

    @property
    def images(self) -> str:
        """The name of the images in the tables."""
        return "drawn shapes" if self.data.name == "shapes" else self.data.name.upper()

    @functools.cached_property
    def dataset(self) -> Dataset:
        """The images, prepared. Raises UserError if they cannot be."""
        try:
            return open_dataset(self.data)
        except UserError as error:
            message = re.sub(r"(--)?(config\.)?data\.root", "--voc_root", str(error))
            raise UserError(message) from error


def on_gpu() -> bool:
    """Returns whether JAX runs on a GPU."""
    return jax.default_backend() in ("gpu", "cuda", "rocm")
