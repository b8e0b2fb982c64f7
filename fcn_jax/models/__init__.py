"""The networks: spatial layers, backbones, and the fully convolutional head.

Networks:
  build.py              the network that a config describes
  fcn.py                backbone, heads and upsampling to full size
  heads.py              score layers, fusion and upsampling of their scores
  unet.py               U-Net's contracting and expanding path
  backbones/            one file per family of backbones, and their contract
  pure_model.py         a model as a pure function: parameters and images in, logits out
  ensemble.py           the mean of several networks, and dropout in prediction
  confidence.py         the most probable class and its probability in one integer
  convolutionalize.py   turns a classifier into a fully convolutional network
Layers:
  feature_map.py        what layers take and return: values, sizes and positions of images
  geometry.py           output sizes, centres of positions, receptive fields
  layers.py             convolution, pooling, padding, ReLU and dropout
  normalisation.py      batch, group and instance normalisation
  convolution.py        faster forms of convolution on a CPU
  upsampling.py         transposed convolutions, learned or fixed and bilinear
  interpolation.py      linear interpolation to any size
  row_blocks.py         full-size results, one block of rows at a time
  remat.py              recomputes the activations of a block in the backward pass
Looking at networks:
  recording.py          records the calls of modules and their feature maps
  recorded.py           marks the layers whose calls `tape.py` notes
  tape.py               a network as a list of operations for other frameworks
"""
