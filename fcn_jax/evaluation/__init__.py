"""Scores of a network on a split of a data set, and comparisons of such scores.

evaluator.py      `Evaluator`: predicts the images of a split, counts and scores them
scorers.py        two ways of predicting and counting them: in batches, or one by one in views
eval_step.py      the evaluation step of a single device
confusion.py      confusion matrices, on the device and on the host
metrics.py        scores from a confusion matrix, as a table and as JSON
boundary.py       boundary IoU
conventions.py    how other projects score
image_counts.py   the counts of each image, and their file
bootstrap.py      confidence intervals
comparison.py     two runs scored on the same images
report_page.py    the report of an evaluation as an HTML page
comparison_page.py  the comparison of two runs as an HTML page, with images
"""
