"""Suite `train_step`: a whole training step, from canvases of bytes to new parameters.

It scales, crops and flips, runs the network forward, computes the loss and its gradients, and
updates the parameters; the batch comes from the host.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax

from benchmarks.measuring import Case, Contender, Contenders
from benchmarks.settings import Settings
from benchmarks.workloads import Workload


def cases(settings: Settings) -> Iterator[Case]:
    """Yields a case for each workload."""
    for workload in settings.workloads:
        yield Case(workload.title, partial(contenders, workload, settings))


def contenders(workload: Workload, settings: Settings) -> Contenders:
    settings.check_runs(workload)
    step = workload.step()
    state = workload.state()
    batch = workload.batch()

    def run() -> Any:
        nonlocal state
        state, metrics = step(state, batch)
        return jax.block_until_ready((state, metrics))

    images = workload.config.train.batch_size
    ours = Contender(
        run, images=images, cost=lambda: workload.step_cost(step), dtype=workload.dtype
    )
    peers = settings.peer.training_steps(workload) if settings.peer else {}
    return {"fcn_jax": ours, **peers}
