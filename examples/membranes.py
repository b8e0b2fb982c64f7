"""Scores a trained network on the ISBI 2012 validation slices: membranes, and the cells between.

    python examples/membranes.py RUN [SLICES] [--mirror]

RUN is the folder of a run of configs/isbi_unet.py, or a model file, which needs the folder of the
slices. It prints the pixel error, the IoU and Dice of membranes, and the Rand F-score of the cells,
averaged over the slices; with --mirror, of the mean of two views.
"""

import sys

import numpy as np

import fcn_jax
from fcn_jax.evaluation.rand import label_cells, rand_f_score
from fcn_jax.inference.options import Inference

MEMBRANE = 1

run, *slices_folder = (argument for argument in sys.argv[1:] if argument != "--mirror")
inference = Inference(flip="--mirror" in sys.argv)
predictor = fcn_jax.load_run(run)
data = predictor.config.data
data.root = slices_folder[0] if slices_folder else data.root
dataset = fcn_jax.open_dataset(data)
counts = np.zeros((2, 2), np.int64)
rand_scores = []
slices = dataset.split(data.eval_split)
for index in range(len(slices)):
    record = slices[index]
    truth = record["label"] == MEMBRANE
    predicted = np.asarray(predictor(record["image"], inference)) == MEMBRANE
    counts += np.bincount((2 * truth + predicted).ravel(), minlength=4).reshape(2, 2)
    cells = [
        (label_cells(truth, diagonal=diagonal), label_cells(predicted, diagonal=diagonal))
        for diagonal in (False, True)
    ]
    rand_scores.append([rand_f_score(*pair) for pair in cells])
(_, wrong), (missed, hits) = counts
plain, diagonal = np.mean(rand_scores, axis=0)
print(f"pixel error      {(wrong + missed) / counts.sum():.4f}")
print(f"membrane IoU     {hits / (hits + wrong + missed):.4f}")
print(f"membrane Dice    {2 * hits / (2 * hits + wrong + missed):.4f}")
print(f"Rand F-score     {plain:.4f} ({diagonal:.4f} if cells may touch at corners)")
