"""An image and a label map that the tests of pictures draw."""

import numpy as np


def draw_scene(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws a random image and a label map: background, and class 15 in a frame of void."""
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    label = np.zeros((height, width), np.uint8)
    label[height // 4 : height // 2, width // 4 : width // 2] = 255
    label[height // 4 + 3 : height // 2 - 3, width // 4 + 3 : width // 2 - 3] = 15
    return image, label
