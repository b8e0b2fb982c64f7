"""Alternatives to predicting an image whole, once and at its own size.

The default, the whole image, is exact: the score of each pixel depends on everything in the
network's receptive field. Other projects cut an image into windows and blend the logits, to save
memory or because their networks need a fixed size, or average over several scales and the mirror
image, which often improves the labels and costs as many passes. To compare with them there are

windows="average"   rectangles that cover the image; where they overlap, the mean of the transposed
                    convolution's outputs goes into the softmax (*Dive into Deep Learning*, section
                    'Fully Convolutional Networks'; mmsegmentation's mode "slide" is the same)
windows="gaussian"  windows with a Gaussian weight (MONAI's `sliding_window_inference`)
scales, flip        the image at other scales, and mirrored left to right: the logits of each view
                    are resized to the size of the image, and their softmax is averaged
                    (mmsegmentation's test-time augmentation)

They can be combined: each view is then cut into windows. Resizing is linear, with pixel centres at
half coordinates and without antialiasing (PyTorch's `interpolate`, `align_corners=False`). Unlike
OpenCV's, the resized image is not rounded to bytes.

If an image is smaller than the window, the rest of the window is outside the image for the network,
so the logits are those of the image alone. MONAI pads with a constant, half of it on each side.
"""

import dataclasses
from collections.abc import Sequence

from fcn_jax.data.canvases import round_up
from fcn_jax.errors import ArgumentError
from fcn_jax.models.pure_model import PureModel

WINDOWS = ("average", "gaussian")
MAX_WINDOW_PX = 2048
MIN_SCALE, MAX_SCALE, MAX_SCALES = 0.1, 4.0, 12


@dataclasses.dataclass(frozen=True)
class Inference:
    """The views of an image that a prediction averages; by default the whole image, once.

    Args:
        windows: None for whole images, "average" or "gaussian".
        window_px: height and width of a window, each in 1…2048.
        overlap: share of a window that the next one covers again, in [0, 1); 0 gives the fewest
            windows.
        scales: factors of the sides of the image, up to 12 different ones in 0.1…4.
        flip: average over the image and its mirror image.

    Raises:
        ArgumentError: a value is out of range.
    """

    windows: str | None = None
    window_px: tuple[int, int] = (320, 480)
    overlap: float = 0.25
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        if self.windows not in (None, *WINDOWS):
            raise ArgumentError("windows", self.windows, f"must be {' or '.join(WINDOWS)}")
        if len(self.window_px) != 2 or not all(1 <= n <= MAX_WINDOW_PX for n in self.window_px):
            raise ArgumentError(
                "window_px",
                _joined(self.window_px),
                f"must be a height and a width in 1…{MAX_WINDOW_PX}",
            )
        if not 0 <= self.overlap < 1:
            raise ArgumentError(
                "overlap",
                self.overlap,
                "must be at least 0 and below 1: it is a share of the window",
            )
        problem = ""
        if not 1 <= len(self.scales) <= MAX_SCALES:
            problem = f"must be 1 to {MAX_SCALES} numbers: each is a pass over the image"
        elif not all(MIN_SCALE <= scale <= MAX_SCALE for scale in self.scales):
            problem = f"must each be in {MIN_SCALE}…{MAX_SCALE}"
        elif len(set(self.scales)) < len(self.scales):
            problem = "names a scale twice"
        if problem:
            raise ArgumentError("scales", self.scales, problem)

    @property
    def description(self) -> str:
        """A description for people, such as "whole images, in sizes 0.5, 1, mirrored too"."""
        height, width = self.window_px
        kinds = {
            None: "whole images",
            "average": f"windows of {height}×{width}, averaged",
            "gaussian": f"windows of {height}×{width}, Gaussian weights",
        }
        words = [kinds[self.windows]]
        if self.windows:
            words.append(f"overlap {self.overlap:g}")
        if self.scales != (1.0,):
            words.append("in sizes " + ", ".join(f"{scale:g}" for scale in self.scales))
        if self.flip:
            words.append("mirrored too")
        return ", ".join(words)

    @property
    def tag(self) -> str:
        """A part of file names, such as "average_320x480_0.25_scales_0.5_1_flip"."""
        parts = []
        if self.windows:
            parts.append(f"{self.windows}_{self.window_px[0]}x{self.window_px[1]}_{self.overlap:g}")
        if self.scales != (1.0,):
            parts.append("_".join(["scales", *(f"{scale:g}" for scale in self.scales)]))
        return "_".join([*parts, *["flip"] * self.flip])

    @property
    def views(self) -> int:
        """The number of views of the image."""
        return len(self.scales) * (1 + self.flip)

    def check_fits(self, network: PureModel) -> None:
        """Checks that averaged rectangles are multiples of the network's coarsest stride (d2l).

        Raises:
            ArgumentError: they are not.
        """
        if self.windows != "average":
            return
        stride = network.model(network.variables).stages[0]
        if any(side % stride for side in self.window_px):
            near = [round_up(side, stride) for side in self.window_px]
            raise ArgumentError(
                "window_px",
                _joined(self.window_px),
                f"must be multiples of the network's coarsest stride, {stride}, to be averaged; "
                f"such as {_joined(near)}",
            )


WHOLE = Inference()


def _joined(numbers: Sequence[float]) -> str:
    return ",".join(map(str, numbers))
