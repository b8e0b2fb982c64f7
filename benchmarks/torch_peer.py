"""PyTorch's contenders, on the same shapes as ours.

On a GPU it trains with channels-last, torch.compile, and automatic mixed precision if ours computes
in bfloat16; on a CPU eagerly or compiled, contiguous or channels-last, whichever is fastest.
Networks are made by a contender's first call, so that one that cannot be made is reported in its
row.
"""

import functools
import gc
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import torch

from benchmarks.hardware import usable_cores
from benchmarks.measuring import Contender, NotMeasuredError
from benchmarks.suite_evaluate import accuracy_note
from benchmarks.torch_evaluation import TorchEvaluation
from benchmarks.torch_step import TorchStep
from benchmarks.workloads import Workload
from fcn_jax.data.splits import Split
from fcn_jax.errors import UserError

EAGER = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
EAGER_3D = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last_3d}
COMPILED = {
    "channels_last, compiled": torch.channels_last,
    "contiguous, compiled": torch.contiguous_format,
}
"""Memory formats by the part of a contender's name in brackets, of which the fastest counts."""

COMPILED_ON_GPU = "channels_last, compiled"


class Peer:
    """PyTorch, on the GPU if JAX uses one, else on all cores.

    Args:
        compiles_on_cpu: whether training steps on a CPU are also compiled, which takes a minute.

    Raises:
        UserError: JAX uses an accelerator, and PyTorch does not see it.
    """

    def __init__(self, *, compiles_on_cpu: bool = False) -> None:
        self.compiles_on_cpu = compiles_on_cpu
        backend = jax.default_backend()
        if backend != "cpu" and not torch.cuda.is_available():
            raise UserError(
                f"--against=torch: JAX is on a {backend.upper()}, and PyTorch {torch.__version__} "
                "sees no GPU: install a CUDA build"
            )
        torch.set_num_threads(usable_cores())
        self.device = torch.device("cpu" if backend == "cpu" else "cuda")
        # TF32 is what JAX uses for float32 on GPUs; cuDNN picks the fastest algorithm by shape.
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def versions(self) -> dict[str, str]:
        found = {"torch": str(torch.__version__)}
        if torch.version.cuda:
            found |= {"torch cuda": torch.version.cuda}
            found |= {"torch cudnn": str(torch.backends.cudnn.version())}
        return found

    def wait(self) -> None:
        """Waits for what was dispatched to the GPU."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def release(self) -> None:
        """Forgets compiled programs, and returns unused memory to the GPU.

        torch.compile keeps programs by function, whatever the network, and after some of them gives
        up and runs eagerly.
        """
        if self.on_gpu:
            torch.compiler.reset()
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()

    def upsampling(
        self,
        values: np.ndarray,
        kernel: np.ndarray,
        cotangent: np.ndarray,
        stride: int,
        padding: int,
        backward: bool,
        dtype: str,
        calls: int,
    ) -> dict[str, Contender]:
        """Makes the contenders of the suite `upsample`; see `suite_upsample.contenders`."""

        def make(layout: Any) -> Callable[[], Any]:
            def tensor(array: np.ndarray) -> Any:
                copy = torch.tensor(array.copy(), dtype=getattr(torch, dtype))
                return copy.to(self.device, memory_format=layout)

            convolve = getattr(torch.nn.functional, f"conv_transpose{kernel.ndim - 2}d")
            x, gradient = (tensor(np.moveaxis(array, -1, 1)) for array in (values, cotangent))
            weight = tensor(np.moveaxis(kernel, (-2, -1), (0, 1)))  # to (in, out, h, w)
            for inputs in (x, weight):
                inputs.requires_grad_(backward)

            def run() -> Any:
                for _ in range(calls):
                    result = convolve(x, weight, stride=stride, padding=padding)
                    if backward:
                        torch.autograd.grad(result, (x, weight), gradient)
                return result

            return run

        layouts = EAGER if kernel.ndim == 4 else EAGER_3D
        return self._contenders("PyTorch", layouts, make, iterations=calls)

    def convolution(
        self, values: np.ndarray, kernel: np.ndarray, cotangent: np.ndarray, backward: bool
    ) -> dict[str, Contender]:
        """Makes the contenders of the suite `volumes`; see `suite_volumes.convolutions`."""

        def make(layout: Any) -> Callable[[], Any]:
            def tensor(array: np.ndarray) -> Any:
                return torch.tensor(array.copy()).to(self.device, memory_format=layout)

            x, gradient = (tensor(np.moveaxis(array, -1, 1)) for array in (values, cotangent))
            weight = tensor(np.moveaxis(kernel, (-1, -2), (0, 1)))  # to (out, in, d, h, w)
            for inputs in (x, weight):
                inputs.requires_grad_(backward)

            def run() -> Any:
                result = torch.nn.functional.conv3d(x, weight, padding=1)
                if backward:
                    torch.autograd.grad(result, (x, weight), gradient)
                return result

            return run

        return self._contenders("PyTorch", EAGER_3D, make)

    def training_steps(self, workload: Workload) -> dict[str, Contender]:
        """Makes the contenders of the suite `train_step`.

        PyTorch cuts its crops image by image; further contenders run on crops that were cut before.
        """
        batch = workload.batch()
        step = functools.cache(functools.partial(self._step, workload))

        def on_crops(how: str) -> Callable[[], Any]:
            return functools.partial(step(how).update, *step(how).augment(batch))

        def whole(how: str) -> Callable[[], Any]:
            return functools.partial(step(how), batch)

        ways = [COMPILED_ON_GPU] if self.on_gpu else [*EAGER]
        if self.compiles_on_cpu and not self.on_gpu:
            ways += COMPILED
        layouts = {how: how for how in ways}
        images = workload.config.train.batch_size
        return self._contenders("PyTorch", layouts, whole, images=images) | self._contenders(
            "PyTorch, crops made before", layouts, on_crops, images=images
        )

    def evaluations(self, workload: Workload, split: Split) -> dict[str, Contender]:
        """Makes the contenders of the suite `evaluate`.

        They are never compiled: torch.compile would compile again for every size of image.
        """

        def make(layout: Any) -> Callable[[], Any]:
            check_one_device()
            return functools.partial(TorchEvaluation(workload, self.device, layout), split)

        def note(confusion: np.ndarray) -> str:
            return accuracy_note(np.trace(confusion) / confusion.sum())

        return self._contenders("PyTorch", EAGER, make, images=len(split), note=note)

    def peak_bytes(self, workload: Workload) -> int:
        """Returns the most that two training steps allocate on the GPU."""
        self.release()
        torch.cuda.reset_peak_memory_stats()
        self.two_steps(workload)
        return torch.cuda.max_memory_allocated()

    def two_steps(self, workload: Workload) -> None:
        """Runs two training steps, for the memory that they take."""
        step = self._step(workload, COMPILED_ON_GPU if self.on_gpu else "contiguous")
        for _ in range(2):
            step(workload.batch())
            self.wait()

    def _step(self, workload: Workload, how: str) -> TorchStep:
        check_one_device()
        layout = (EAGER | COMPILED)[how]
        return TorchStep(workload, self.device, layout, compiled=how in COMPILED)

    def _contenders(
        self,
        name: str,
        layouts: Mapping[str, Any],
        make: Callable[[Any], Callable[[], Any]],
        **options: Any,
    ) -> dict[str, Contender]:
        """A contender for each layout; what it calls is made by its first call."""
        make = functools.cache(make)

        def call(layout: Any) -> Any:
            result = make(layout)()
            self.wait()
            return result

        return {
            f"{name} ({how})": Contender(functools.partial(call, layout), peer=True, **options)
            for how, layout in layouts.items()
        }


def check_one_device() -> None:
    """Raises NotMeasuredError if JAX uses several devices, of which PyTorch would use one."""
    if jax.device_count() > 1:
        raise NotMeasuredError("it runs on one device, ours on all: show it a single one")
