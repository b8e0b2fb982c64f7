"""A network that compiles in a moment, and a fault at a chosen step, for `--import`.

$FAULT="STEP:KIND:PROCESS" strikes a process, or with PROCESS=all each of them, when it has
dispatched that step. KIND is a signal (TERM, INT, USR1, KILL, STOP); STUCK, which waits for ever;
or FULL, after which no file can grow: it begins with the first save from that step on.
"""

import os
import resource
import signal
import time
from typing import Any

from flax import nnx

from fcn_jax.models.backbones.preprocess import TORCHVISION
from fcn_jax.models.geometry import PIXELS
from fcn_jax.models.layers import BatchNorm, Conv, relu
from fcn_jax.registry import register_backbone


@register_backbone("tiny")
class Tiny(nnx.Module):
    def __init__(self, *, preprocessing=TORCHVISION, axis_name=None, rngs):
        self.preprocessing = preprocessing
        self.conv1 = Conv(preprocessing.channels, 4, (3, 3), stride=2, rngs=rngs)
        self.norm = BatchNorm(4, axis_name=axis_name)
        self.conv2 = Conv(4, 8, (3, 3), stride=2, rngs=rngs)
        half = PIXELS.after(3, stride=2)
        self.channels = {2: 4, 4: 8}
        self.grids = {2: half, 4: half.after(3, stride=2)}

    def __call__(self, image, *, train=False, keys=None):
        x = relu(self.norm(self.conv1(image), train=train))
        return {2: x, 4: relu(self.conv2(x))}


def arrange(fault: str) -> None:
    import jax

    from fcn_jax.training.checkpoint import CheckpointWriter
    from fcn_jax.training.metric_logger import MetricLogger

    step, kind, process = fault.split(":")

    def is_struck() -> bool:
        return process in ("all", str(jax.process_index()))

    def dispatched(self: Any, steps: Any, metrics: Any) -> None:
        log(self, steps, metrics)
        if int(step) in steps and kind != "FULL" and is_struck():
            if kind == "STUCK":
                time.sleep(10_000)
            signal.raise_signal(getattr(signal, f"SIG{kind}"))

    def save_in_vain(self: Any, state: Any, mean_iou: Any) -> None:
        if int(state.step) >= int(step) and kind == "FULL" and is_struck():
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        save(self, state, mean_iou)

    log, save = MetricLogger.dispatched, CheckpointWriter.save
    MetricLogger.dispatched = dispatched  # type: ignore[method-assign]
    CheckpointWriter.save = save_in_vain  # type: ignore[method-assign]


if "FAULT" in os.environ:
    arrange(os.environ["FAULT"])
