"""Finds the largest batch of FCN-ResNet-50 at 512×512 whose training step runs on one device.

    python -m benchmarks.largest_batch "fcn_jax|fcn_jax with remat|PyTorch" SMALL

The suite `memory` starts this program, which prints the batch size. SMALL is 1 for tiny sizes and
batches of at most two images.
"""

import os
import sys
from collections.abc import Callable

import jax

from benchmarks.measuring import NotMeasuredError, is_out_of_memory
from benchmarks.workloads import Workload, workloads

SIDE_PX = 512
MAX_BATCH_SIZE = 1024


def main(contender: str, small: bool) -> None:
    _, workload, _ = workloads(small)
    if not small:
        workload = workload.changed(augment__crop_px=(SIDE_PX, SIDE_PX))
    if contender == "fcn_jax with remat":
        workload = workload.changed(model__remat=True)
    run = torch_steps if contender == "PyTorch" else two_steps
    try:
        print(largest(lambda size: fits(run, workload, size), 2 if small else MAX_BATCH_SIZE))
    except NotMeasuredError as error:
        sys.exit(str(error))


def largest(fits: Callable[[int], bool], maximum: int) -> int:
    """Returns the largest batch that fits, by doubling and then by bisection.

    Args:
        fits: returns whether a batch of this size fits; then all smaller ones fit too.
        maximum: the largest batch that is tried.

    Returns:
        The batch size, 0 if not even a single image fits.
    """
    low, high = 0, 1
    while high <= maximum and fits(high):
        low, high = high, 2 * high
    high = min(high, maximum + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def fits(run: Callable[[Workload], None], workload: Workload, batch_size: int) -> bool:
    """Returns whether the memory suffices to run a workload with a batch size on each device."""
    try:
        run(workload.changed(train__batch_size=batch_size * jax.device_count()))
    except Exception as error:
        if is_out_of_memory(error):
            return False
        raise
    return True


def two_steps(workload: Workload) -> None:
    step = workload.step()
    state = workload.state()
    for _ in range(2):
        state, _ = step(state, workload.batch())
    jax.block_until_ready(state)


def torch_steps(workload: Workload) -> None:
    from benchmarks.torch_peer import Peer

    peer = Peer()
    try:
        peer.two_steps(workload)
    finally:
        peer.release()


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # it runs out of memory on purpose
    main(sys.argv[1], sys.argv[2] == "1")
