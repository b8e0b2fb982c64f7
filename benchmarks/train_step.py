"""Suite: a whole training step, from canvases of bytes to new parameters.

Scale, crop and flip, forward, loss, gradients, update; the batch comes from the host.
"""

from collections.abc import Iterator
from typing import Any

import jax

from benchmarks.cost import Cost, flops
from benchmarks.measuring import Case, Contender, NotMeasuredError
from benchmarks.settings import Settings
from benchmarks.workloads import Workload, random_canvases, random_variables, workloads


def cases(settings: Settings) -> Iterator[Case]:
    for workload in workloads(settings.small):
        yield Case(workload.title, lambda w=workload: contenders(w, settings))  # type: ignore[misc]


def contenders(workload: Workload, settings: Settings) -> dict[str, Contender | NotMeasuredError]:
    settings.check_runs(workload)
    batch_size = workload.config.train.batch_size
    network = workload.network()
    variables = random_variables(network)
    step = workload.step(network)
    state = workload.state(network, variables)
    batch = random_canvases(batch_size, workload.canvas_px)

    def run() -> Any:
        nonlocal state
        state, metrics = step(state, batch)
        return jax.block_until_ready((state, metrics))

    def cost() -> Cost:
        lowered = step.lower(workload.abstract_state(network), workload.abstract_batch())
        return Cost(flops(lowered, workload.traced(network)), workload.dtype)

    made: dict[str, Contender | NotMeasuredError] = {
        "fcn_jax": Contender(run, images=batch_size, cost=cost)
    }
    if settings.peer is not None:
        made |= settings.peer.training_steps(workload, variables, batch)
    return made
