"""Suite `members`: a training step of an ensemble, compared with the steps of its members alone."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax

from benchmarks.measuring import Case, Contender, Contenders
from benchmarks.settings import Settings
from benchmarks.workloads import Workload, random_variables
from fcn_jax.models.ensemble import stacked
from fcn_jax.parallel import data_parallel
from fcn_jax.training.train_step import TrainState, create_train_state

MEMBERS = 4
MOST_PARAMETERS = 5_000_000
"""Of one member: four of VGG16, with the state of their optimizer, are 8 GB for each contender."""


def cases(settings: Settings) -> Iterator[Case]:
    """Yields a case for each small network."""
    for workload in settings.workloads:
        params, _ = workload.network.variables
        if sum(leaf.size for leaf in jax.tree.leaves(params)) <= MOST_PARAMETERS:
            yield Case(f"{MEMBERS} × {workload.title}", partial(contenders, workload, settings))


def contenders(workload: Workload, settings: Settings) -> Contenders:
    settings.check_runs(workload)
    variables = random_variables(workload.network)
    of_all = stacked([variables] * MEMBERS)
    alone = workload.device_step()

    def vmapped(state: TrainState, batch: Any) -> Any:
        of_member = TrainState(None, 0, 0, 0)  # type: ignore[arg-type]
        axes = of_member, None
        state, metrics = jax.vmap(alone, axes, (of_member, 0))(state, batch)
        return state, jax.tree.map(lambda values: values.mean(), metrics)

    at_once = workload.changed(train__members=MEMBERS).device_step()
    create = partial(create_train_state, optimizer=workload.optimizer)
    batch = workload.batch()

    def contender(step: Any, state: TrainState, calls: int = 1) -> Contender:
        compiled = data_parallel.parallelize(step, donate_state=True)

        def run() -> Any:
            nonlocal state
            for _ in range(calls):
                state, metrics = compiled(state, batch)
            return jax.block_until_ready((state, metrics))

        return Contender(run, images=MEMBERS * workload.config.train.batch_size)

    return {
        "at once": contender(at_once, create(of_all, members=MEMBERS)),
        "one by one": contender(alone, create(variables), MEMBERS),
        "vmap": contender(vmapped, create(of_all, members=MEMBERS)),
    }
