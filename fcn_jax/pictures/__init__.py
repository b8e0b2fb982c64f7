"""Pictures for people: label maps over images, sheets of predictions, plots. Two-dimensional only.

colours.py        colours that all pictures share, and hatching
layout.py         parts of sheets: rows of thumbnails, captions, stacked bands
legend.py         names and colours of the classes below a picture
overlays.py       label maps as palette PNGs, over an image, and maps of errors
sheets.py         image, truth, prediction and error of several images
contact_sheet.py  images with their masks, as the doctor draws them
maps.py           feature maps, filters and fields of influence
uncertainty.py    an image beside its entropy and mutual information
orthogonal.py     three orthogonal slices of a volume side by side
plots.py          the plot of a confusion matrix
curves.py         curves and histograms as SVG
html_page.py      HTML pages in one file: tables that sort, pictures inside
"""
