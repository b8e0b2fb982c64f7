"""PyTorch, to compare with: on the same shapes, in its best setting.

On a GPU that is channels-last, torch.compile and automatic mixed precision where ours computes in
bfloat16; on the CPU contiguous or channels-last, whichever is faster. Imported only where it is
asked for.
"""

import dataclasses
import gc
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import torch

from fcn_jax.benchmark.evaluate import accuracy_note
from fcn_jax.benchmark.hardware import usable_cores
from fcn_jax.benchmark.measuring import Contender, NotMeasuredError
from fcn_jax.benchmark.settings import on_gpu
from fcn_jax.benchmark.torch_evaluation import TorchEvaluation
from fcn_jax.benchmark.torch_step import TorchStep
from fcn_jax.benchmark.workloads import Workload
from fcn_jax.data.splits import Split

SEVERAL_DEVICES = NotMeasuredError("it runs on one device, ours on all: show it a single one")


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
        how = "channels_last" if self.channels_last else "contiguous"
        return f"PyTorch ({how}{', compiled' if self.compiled else ''})"


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
    def treatments(self) -> list[Treatment]:
        if self.device.type == "cuda":
            return [Treatment(channels_last=True, compiled=True)]
        return [Treatment(channels_last=False), Treatment(channels_last=True)]

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
    ) -> dict[str, Contender]:
        """Of the suite `upsample`, in both layouts."""

        def contender(treatment: Treatment) -> Callable[[], Any]:
            x = self.images(values, treatment.channels_last, dtype)
            weight = torch.tensor(kernel.transpose(2, 3, 0, 1).copy(), dtype=x.dtype)
            weight = weight.to(self.device, memory_format=treatment.layout)
            x.requires_grad_(backward)
            weight.requires_grad_(backward)
            gradient = self.images(cotangent, treatment.channels_last, dtype)

            def run() -> Any:
                result = torch.nn.functional.conv_transpose2d(
                    x, weight, stride=stride, padding=stride // 2
                )
                if backward:
                    torch.autograd.grad(result, (x, weight), gradient)
                self.wait()
                return result

            return run

        treatments = [Treatment(channels_last=False), Treatment(channels_last=True)]
        return {treatment.name: Contender(contender(treatment)) for treatment in treatments}

    def training_steps(
        self, workload: Workload, variables: tuple[Any, Any], batch: Mapping[str, np.ndarray]
    ) -> dict[str, Contender | NotMeasuredError]:
        """Of the suite `train_step`: one for each treatment."""
        if jax.device_count() > 1:
            return {"PyTorch": SEVERAL_DEVICES}
        made: dict[str, Contender | NotMeasuredError] = {}
        for treatment in self.treatments:
            try:
                step = TorchStep(workload, variables, self.device, treatment)
            except NotMeasuredError as error:
                return {"PyTorch": error}
            made[treatment.name] = Contender(
                lambda step=step: self._stepped(step, batch),  # type: ignore[misc]
                images=len(batch["image"]),
            )
        return made

    def _stepped(self, step: TorchStep, batch: Mapping[str, np.ndarray]) -> None:
        try:
            step(batch)
        except Exception as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            reason = str(error).strip().partition("\n")[0]
            raise NotMeasuredError(f"torch.compile failed: {reason}") from error
        self.wait()

    def peak_bytes(
        self, workload: Workload, variables: tuple[Any, Any], batch: Mapping[str, np.ndarray]
    ) -> int:
        """The most that was allocated on the GPU in two steps."""
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
            self._stepped(step, batch)

    def release(self) -> None:
        """Gives memory that nothing uses back to the GPU."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def evaluations(
        self, workload: Workload, variables: tuple[Any, Any], split: Split
    ) -> dict[str, Contender | NotMeasuredError]:
        """Of the suite `evaluate`, in both layouts; never compiled: every size would be anew."""

        def note(confusion: np.ndarray) -> str:
            return accuracy_note(np.trace(confusion) / confusion.sum())

        if jax.device_count() > 1:
            return {"PyTorch": SEVERAL_DEVICES}
        made: dict[str, Contender | NotMeasuredError] = {}
        for treatment in (Treatment(channels_last=False), Treatment(channels_last=True)):
            run = TorchEvaluation(workload, variables, self.device, treatment.layout)
            made[treatment.name] = Contender(
                lambda run=run: run(split),  # type: ignore[misc]
                images=len(split),
                note=note,
            )
        return made
