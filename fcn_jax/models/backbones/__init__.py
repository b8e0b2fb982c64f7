"""Image classifiers without their classifier: images in, features by stride out.

A backbone is an `nnx.Module` with

- `preprocessing`: what its weights were trained on, applied to RGB in 0…255;
- `channels`: stride → number of features, for each stride that it offers;
- `offsets`: stride → where its first position lies: position i at stride s is centred on pixel
  s·i + offset, counted from the centre of the first pixel;
- `__call__(image: FeatureMap, *, train, keys) -> {stride: FeatureMap}`.

`preprocess.py` has the two preprocessings that published weights want.
"""
