"""The networks: spatial layers, backbones, and the fully convolutional head."""
