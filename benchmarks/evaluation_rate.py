"""Suite: the score of all validation images, as `fcn_jax.evaluate` makes it, reading included."""

import dataclasses
from collections.abc import Iterator

from benchmarks.measuring import Case, Contender, NotMeasuredError
from benchmarks.settings import Settings
from benchmarks.workloads import Workload, random_variables, workloads
from fcn_jax.config import EvalConfig
from fcn_jax.evaluation.evaluator import Evaluation, evaluator

MAX_REPEATS = 3
"""Every call is a pass over the whole split."""


def cases(settings: Settings) -> Iterator[Case]:
    workload = next(workloads(settings.small))
    yield Case(
        f"{workload.name}, {settings.images}: the whole of {split_of(settings)}, "
        f"at most {MAX_REPEATS} repeats",
        lambda: contenders(workload, settings),
        warm_up_calls=1,
        most_repeats=MAX_REPEATS,
    )


def split_of(settings: Settings) -> str:
    return "val[:6]" if settings.small else "val"


def contenders(workload: Workload, settings: Settings) -> dict[str, Contender | NotMeasuredError]:
    dataset = settings.dataset()
    split = split_of(settings)
    workload = dataclasses.replace(workload, num_classes=len(dataset.class_names))
    network = workload.network()
    variables = random_variables(network)
    evaluate = evaluator(network, dataset, split, EvalConfig())
    count = len(dataset.split(split))

    def note(evaluation: Evaluation) -> str:
        return accuracy_note(evaluation.scores.pixel_accuracy)

    made: dict[str, Contender | NotMeasuredError] = {
        "fcn_jax": Contender(lambda: evaluate(variables), images=count, note=note)
    }
    if settings.peer is not None:
        made |= settings.peer.evaluations(workload, variables, dataset.split(split))
    return made


def accuracy_note(pixel_accuracy: float) -> str:
    """Beside each contender, to be compared: random weights, so it is that of guessing."""
    return f"pixel accuracy {pixel_accuracy:.3%}"
