"""Prediction with trained networks.

trained          load_run, load_weights, Predictor
options          windows, scales and mirror images to average over
views            predictions as the options describe
temperature      temperature of the probabilities, in a file of the run
uncertainty      entropy and mutual information of every pixel, over members or dropout
details          probable classes and entropy of every pixel, for a page
windows          positions and weights of windows
tiles            images of any size in tiles, with the label map of the whole image
image_files      one image file in, label maps and overlays out
uncertainty_files  maps of uncertainty as 16-bit PNGs, and a picture of them
scenes           TIFFs read and written by window
bands            bands of a TIFF that a network can use
resume           tiles on disk, to resume an interrupted command
output_digest    a digest in each label-map file that shows whether it is up to date
volumes          volumes in overlapping tiles with Gaussian weights
volume_files     NIfTI files in, label maps on their grid out
inside           intermediate results of a network
inside_pictures  pictures of them
voc_server       PASCAL VOC 2012's test images for its evaluation server
voc_archive      the label maps that the server accepts, and the archive
"""
