"""PyTorch, to compare with, on the same shapes.

On a GPU with channels-last, torch.compile and automatic mixed precision where ours computes in
bfloat16; eager on the CPU, contiguous or channels-last, whichever is faster. Imported only where it
is asked for.

Networks are made by a contender's first call, so that one that cannot be made is told in its row.
"""

import dataclasses
import functools
import gc
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import torch

from benchmarks.evaluation_rate import accuracy_note
from benchmarks.hardware import usable_cores
from benchmarks.measuring import Contender, NotMeasuredError
from benchmarks.settings import on_gpu
from benchmarks.torch_evaluation import TorchEvaluation
from benchmarks.torch_step import TorchStep
from benchmarks.workloads import Workload
from fcn_jax.data.splits import Split


def check_one_device() -> None:
    """Raises NotMeasuredError where ours has several."""
    if jax.device_count() > 1:
        raise NotMeasuredError("it runs on one device, ours on all: show it a single one")


@dataclasses.dataclass(frozen=True)
class Treatment:
    """How a network is run. compiled: by torch.compile."""

    channels_last: bool
    compiled: bool = False

    @property
    def layout(self) -> Any:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @property
    def name(self) -> str:
        """In brackets, of which the faster counts."""
        how = "channels_last" if self.channels_last else "contiguous"
        return f"({how}{', compiled' if self.compiled else ''})"


LAYOUTS = (Treatment(channels_last=False), Treatment(channels_last=True))


class Peer:
    """PyTorch, on the GPU where JAX is on one, else on as many cores."""

    def __init__(self) -> None:
        torch.set_num_threads(usable_cores())
        self.device = torch.device("cuda" if on_gpu() and torch.cuda.is_available() else "cpu")
        # What JAX does with float32 on GPUs by default, and the fastest algorithm for each shape.
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True

    @property
    def versions(self) -> dict[str, str]:
        found = {"torch": str(torch.__version__)}
        if torch.version.cuda:
            found |= {"torch cuda": torch.version.cuda}
            found |= {"torch cudnn": str(torch.backends.cudnn.version())}
        return found

    @property
    def treatments(self) -> tuple[Treatment, ...]:
        if self.device.type == "cuda":
            return (Treatment(channels_last=True, compiled=True),)
        return LAYOUTS

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def images(self, values: np.ndarray, channels_last: bool, dtype: str = "float32") -> Any:
        """(b, h, w, c) to (b, c, h, w), in one of the two layouts in memory."""
        tensor = torch.tensor(values, dtype=getattr(torch, dtype)).permute(0, 3, 1, 2)
        tensor = tensor.to(self.device)
        return tensor if channels_last else tensor.contiguous()

    def upsampling(
        self,
        values: np.ndarray,
        kernel: np.ndarray,
        cotangent: np.ndarray,
        stride: int,
        backward: bool,
        dtype: str,
        calls: int,
    ) -> dict[str, Contender]:
        """Of the suite `upsample`, in both layouts. calls: back to back, the last waited for."""

        def upsampling(treatment: Treatment) -> Callable[[], Any]:
            x = self.images(values, treatment.channels_last, dtype)
            weight = torch.tensor(kernel.transpose(2, 3, 0, 1).copy(), dtype=x.dtype)
            weight = weight.to(self.device, memory_format=treatment.layout)
            x.requires_grad_(backward)
            weight.requires_grad_(backward)
            gradient = self.images(cotangent, treatment.channels_last, dtype)

            def run() -> Any:
                for _ in range(calls):
                    result = torch.nn.functional.conv_transpose2d(
                        x, weight, stride=stride, padding=stride // 2
                    )
                    if backward:
                        torch.autograd.grad(result, (x, weight), gradient)
                self.wait()
                return result

            return run

        def contender(treatment: Treatment) -> Contender:
            run = functools.cache(lambda: upsampling(treatment))
            return Contender(lambda: run()(), iterations=calls, peer=True)

        return {f"PyTorch {treatment.name}": contender(treatment) for treatment in LAYOUTS}

    def training_steps(
        self, workload: Workload, variables: tuple[Any, Any], batch: Mapping[str, np.ndarray]
    ) -> dict[str, Contender]:
        """Of the suite `train_step`: for each treatment whole steps, and steps on crops that lie on
        the device, because PyTorch's are made image by image.
        """

        def contenders(treatment: Treatment) -> dict[str, Contender]:
            @functools.cache
            def step() -> TorchStep:
                check_one_device()
                return TorchStep(workload, variables, self.device, treatment)

            @functools.cache
            def crops() -> tuple[Any, Any]:
                return step().augment(batch)

            def whole() -> None:
                step()(batch)
                self.wait()

            def on_crops() -> None:
                step().update(*crops())
                self.wait()

            calls = {"PyTorch": whole, "PyTorch, crops made before": on_crops}
            return {
                f"{name} {treatment.name}": Contender(call, images=len(batch["image"]), peer=True)
                for name, call in calls.items()
            }

        made: dict[str, Contender] = {}
        for treatment in self.treatments:
            made |= contenders(treatment)
        return made

    def peak_bytes(
        self, workload: Workload, variables: tuple[Any, Any], batch: Mapping[str, np.ndarray]
    ) -> int:
        """The most that was allocated on the GPU in two steps."""
        check_one_device()
        self.release()
        torch.cuda.reset_peak_memory_stats()
        self.two_steps(workload, variables, batch)
        return torch.cuda.max_memory_allocated()

    def two_steps(
        self, workload: Workload, variables: tuple[Any, Any], batch: Mapping[str, np.ndarray]
    ) -> None:
        """For what they take of memory."""
        step = TorchStep(workload, variables, self.device, self.treatments[0])
        for _ in range(2):
            step(batch)
            self.wait()

    def release(self) -> None:
        """Forgets what was compiled, and gives memory that nothing uses back to the GPU.

        torch.compile keeps it by function, whatever the network, and after some times gives up and
        runs eagerly.
        """
        if self.device.type == "cuda":
            torch.compiler.reset()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def evaluations(
        self, workload: Workload, variables: tuple[Any, Any], split: Split
    ) -> dict[str, Contender]:
        """Of the suite `evaluate`, in both layouts; never compiled: every size would be anew."""

        def note(confusion: np.ndarray) -> str:
            return accuracy_note(np.trace(confusion) / confusion.sum())

        def contender(treatment: Treatment) -> Contender:
            @functools.cache
            def evaluation() -> TorchEvaluation:
                check_one_device()
                return TorchEvaluation(workload, variables, self.device, treatment.layout)

            return Contender(lambda: evaluation()(split), images=len(split), note=note, peer=True)

        return {f"PyTorch {treatment.name}": contender(treatment) for treatment in LAYOUTS}
