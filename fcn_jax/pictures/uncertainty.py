"""A picture of the uncertainty of an image: the image and its maps, each with a scale."""

import numpy as np
from PIL import Image

from fcn_jax.pictures import layout
from fcn_jax.pictures.maps import heat

MIN_PANEL_PX, MAX_PANEL_PX = 220, 900
BAR_PX = 12


def uncertainty_picture(
    image: np.ndarray, entropy: np.ndarray, information: np.ndarray | None, full_scale: float
) -> Image.Image:
    """Draws an image, its entropy and, if there is one, its mutual information side by side.

    Args:
        image: uint8 (h, w, 3).
        entropy: float (h, w), in nats. Its lightest colour is `full_scale`.
        information: float (h, w), in nats, or None. Its lightest colour is its largest value.
        full_scale: the largest possible entropy, in nats.
    """
    width = min(max(image.shape[1], MIN_PANEL_PX), MAX_PANEL_PX)
    panels = [_panel("image", image, width, None)]
    panels.append(_panel("entropy", heat(entropy, 0, full_scale), width, full_scale))
    if information is not None:
        largest = float(information.max())
        drawn = heat(information, 0, largest)
        panels.append(_panel("mutual information", drawn, width, largest))
    return layout.row(panels)


def _panel(title: str, picture: np.ndarray, width: int, largest: float | None) -> Image.Image:
    bands = [layout.caption(width, title), layout.thumbnail(picture, width)]
    if largest is not None:
        shades = heat(np.broadcast_to(np.linspace(0, 1, width), (BAR_PX, width)), 0, 1)
        bands += [Image.fromarray(shades), layout.caption(width, "0", f"{largest:.3g} nats")]
    return layout.stack(bands)
