"""Suite `evaluate`: the score of all validation images as `fcn_jax.evaluate` computes it.

The time includes reading and decoding the images.
"""

import dataclasses
from collections.abc import Iterator
from functools import partial

from benchmarks.measuring import Case, Contender, Contenders
from benchmarks.settings import Settings
from benchmarks.workloads import Workload, random_variables
from fcn_jax.config import EvalConfig
from fcn_jax.evaluation.evaluator import Evaluator

MAX_REPEATS = 3
"""Every call is a pass over the whole split."""


def cases(settings: Settings) -> Iterator[Case]:
    """Yields a single case."""
    workload = settings.workloads[0]
    split = "val[:6]" if settings.small else "val"
    yield Case(
        f"{workload.name}, {settings.images}: all of {split}, at most {MAX_REPEATS} repeats",
        partial(contenders, workload, split, settings),
        warm_up_calls=1,
        max_repeats=MAX_REPEATS,
    )


def contenders(workload: Workload, split: str, settings: Settings) -> Contenders:
    dataset = settings.dataset
    workload = dataclasses.replace(workload, num_classes=len(dataset.class_names))
    variables = random_variables(workload.network)
    evaluate = Evaluator(workload.network, dataset, split, EvalConfig())
    records = dataset.split(split)
    ours = Contender(
        lambda: evaluate(variables),
        images=len(records),
        note=lambda evaluation: accuracy_note(evaluation.scores.pixel_accuracy),
    )
    peers = settings.peer.evaluations(workload, records) if settings.peer else {}
    return {"fcn_jax": ours, **peers}


def accuracy_note(pixel_accuracy: float) -> str:
    """Returns the note that shows that all contenders score alike; the weights are random."""
    return f"pixel accuracy {pixel_accuracy:.3%}"
