"""Finds the largest batch of FCN-ResNet-50 at 512×512 whose training step runs on one device.

    python -m benchmarks.largest_batch fcn_jax|fcn_jax_remat|torch SMALL

A program of the suite `memory`; it prints the batch size. SMALL is 1 for tiny sizes, of which it
tries two batches at most.
"""

import json
import os
import sys
from collections.abc import Callable

import jax

from benchmarks.measuring import NotMeasuredError, is_out_of_memory
from benchmarks.workloads import Workload, random_canvases, random_variables, workloads

SIDE_PX = 512
MAX = 1024


def main(contender: str, small: bool) -> None:
    workload = next(w for w in workloads(small) if w.config.model.backbone == "resnet50")
    if not small:
        workload = workload.changed(augment__crop_px=(SIDE_PX, SIDE_PX))
    if contender == "fcn_jax_remat":
        workload = workload.changed(model__remat=True)
    runs = runs_in_torch if contender == "torch" else runs_here
    try:
        print(json.dumps(largest(lambda size: runs(workload, size), 2 if small else MAX)))
    except NotMeasuredError as error:
        sys.exit(str(error))


def largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest batch that fits, 0 where not even one image does: doubled, then bisected.

    fits: holds up to some size, and from there on no more.
    """
    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low


def runs_here(workload: Workload, batch_size: int) -> bool:
    """Whether two steps of ours have memory enough."""
    workload = workload.changed(train__batch_size=batch_size * jax.device_count())
    network = workload.network()
    step = workload.step(network)
    batch = random_canvases(workload.config.train.batch_size, workload.canvas_px)
    try:
        state = workload.state(network, random_variables(network))
        for _ in range(2):
            state, _ = step(state, batch)
        jax.block_until_ready(state)
    except Exception as error:
        if is_out_of_memory(error):
            return False
        raise
    return True


def runs_in_torch(workload: Workload, batch_size: int) -> bool:
    """Whether two of PyTorch's have."""
    from benchmarks.torch_peer import Peer

    peer = Peer()
    batch = random_canvases(batch_size, workload.canvas_px)
    try:
        peer.two_steps(workload, random_variables(workload.network()), batch)
    except Exception as error:
        if is_out_of_memory(error):
            return False
        raise
    finally:
        peer.release()
    return True


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # it runs out of memory on purpose
    main(sys.argv[1], sys.argv[2] == "1")
