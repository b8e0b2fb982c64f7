"""Scores of a network on a split of a data set, and comparisons of such scores.

evaluator.py        `Evaluator`: predicts the images of a split, counts and scores them
scorers.py          two ways of predicting and counting them: in batches, or one by one in views
eval_step.py        the evaluation step of a single device
confusion.py        confusion matrices, on the device and on the host
metrics.py          scores from a confusion matrix, as a table and as JSON
calibration.py      expected calibration error, from counts of pixels by confidence
temperature_fit.py  fits the temperature of the probabilities on a split
boundary.py         boundary IoU
conventions.py      how other projects score
image_counts.py     the counts of each image, and their file
count_files.py      files of counts, written whole and read without trusting them
bootstrap.py        confidence intervals
shards.py           the counts of a part of a split, and their sum
rand.py             Rand F-score of a segmentation into cells
case_scores.py      Dice and surface distances of each volume
comparison.py       two runs scored on the same images
report.py           prints the scores, and writes them to the folder of a run
report_page.py      the report of an evaluation as an HTML page
comparison_page.py  the comparison of two runs as an HTML page, with images
"""
