"""What the command line asks of the suites."""

import dataclasses
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
    """What to measure, and on which images.

    Attributes:
        small: tiny sizes, that show whether all of it runs.
        gpu_cases: whether what is meant for a GPU is run: on one, or because all is asked for.
        voc_root: where the real images are; '': drawn shapes stand in.
        peer: PyTorch, where it is to be compared with.
    """

    small: bool
    gpu_cases: bool
    voc_root: str
    peer: "Peer | None"

    def check_runs(self, workload: Workload) -> None:
        """Raises NotMeasuredError for what is for GPUs, where there is none."""
        if workload.for_gpu and not self.gpu_cases:
            raise NotMeasuredError("no GPU (--all runs it nevertheless)")

    @property
    def images(self) -> str:
        """What the images that are read are called in the table."""
        return "VOC" if self.voc_root else "drawn shapes"

    def dataset(self) -> Dataset:
        """Those images. Raises UserError where they cannot be prepared."""
        if not self.voc_root:
            return open_dataset(DataConfig(name="shapes"))
        try:
            return open_dataset(DataConfig(name="voc", root=self.voc_root))
        except UserError as error:
            here = re.sub(r"(--)?config\.data\.root", "--voc_root", str(error))
            raise UserError(here) from error


def on_gpu() -> bool:
    return jax.default_backend() in ("gpu", "cuda", "rocm")
