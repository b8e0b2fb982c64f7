"""Ours and PyTorch's evaluation score the same images alike."""

import dataclasses

import numpy as np

from benchmarks import suite_evaluate
from benchmarks.settings import Settings


def test_both_evaluations_count_the_same_pixels(settings_with_torch: Settings) -> None:
    workload = settings_with_torch.workloads[0]
    made = dict(suite_evaluate.contenders(workload, "train", settings_with_torch))
    ours = made.pop("fcn_jax").call()  # type: ignore[union-attr]
    confusion = ours.by_map[""].confusion
    assert len(np.flatnonzero(confusion.sum(axis=0))) > 1  # not all pixels of one class
    assert sorted(made) == ["PyTorch (channels_last)", "PyTorch (contiguous)"]
    for contender in made.values():
        theirs = contender.call()  # type: ignore[union-attr]
        assert theirs.sum() == confusion.sum()
        assert np.abs(theirs - confusion).sum() <= 1e-4 * confusion.sum()  # rounding decides ties
        note = contender.note(theirs)  # type: ignore[union-attr]
        assert note == suite_evaluate.accuracy_note(np.trace(theirs) / theirs.sum())


def test_all_images_of_the_split_are_scored(settings: Settings) -> None:
    (case,) = suite_evaluate.cases(dataclasses.replace(settings, small=False))
    assert case.name == "tiny, FOLDER: all of val, at most 3 repeats"
    contender = case.build()["fcn_jax"]
    assert contender.images == 2  # type: ignore[union-attr]
