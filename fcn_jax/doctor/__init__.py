"""Examination of a data set before training: `python -m fcn_jax.doctor`.

__main__.py    the command: examines all images, prints the findings, draws the picture
subject.py     a data set as the doctor reads it: raw files if there are any, else prepared records
examine.py     one image with its masks: what it contains, and what is wrong with it
artefacts.py   detects masks that were resized with interpolation or saved as JPEG
survey.py      statistics of the whole set: sizes, modes, pixels of each class
set_checks.py  faults that only the whole set shows: duplicates, missing classes, outliers
volumes.py     grids, intensities and labels of a set of volumes
augmented.py   the first samples of a training, augmented
kinds.py       the table of all faults and remarks, each with its remedy
advice.py      class weights, crop and canvas that suit the set
report.py      prints statistics, findings and advice
"""
