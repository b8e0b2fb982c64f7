"""A page in the browser and an HTTP API for a trained network: `python -m fcn_jax.serve`.

__main__.py    the command: flags, loading, warm-up, the listening socket
app.py         routes, and errors as one sentence
uploads.py     the bytes of a request: limits, header, decoding
worker.py      one image at a time in a thread, with a bounded queue and a time limit
segmenter.py   a decoded image in; palette PNG, shares and layers of the page out
digits.py      the demo: LeNet's layers while a digit is drawn
static/        the pages
"""
