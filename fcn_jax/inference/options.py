"""Other ways to label an image than whole, once and at its own size.

An image is seen whole by default, which is exact: each pixel is scored from all that the network
can see of it. Others cut it into windows and blend their logits, for lack of memory or of networks
that take any size, or look at it in several sizes and mirrored, which often labels better and costs
as many times more. To compare with their numbers there are

windows="average"   rectangles that cover the image; where they overlap, the mean of the transposed
                    convolution's outputs goes into the softmax (*Dive into Deep Learning*, section
                    'Fully Convolutional Networks'; mmsegmentation's mode "slide" is the same)
windows="gaussian"  windows that count most in their middle (MONAI's `sliding_window_inference`)
scales, flip        the image in other sizes, and mirrored left to right: the logits of each view
                    are resized to the image's own size, and their softmax is averaged
                    (mmsegmentation's test-time augmentation)

Both go together: each view is then seen in windows. Resizing is linear, with pixel centres at half
coordinates and without smoothing (PyTorch's `interpolate`, `align_corners=False`); the resized
image is not rounded to bytes, as it is by OpenCV.

Where an image is smaller than the window, what lies outside is outside for the network, so that it
gets the logits that the image has alone; MONAI pads with a constant there, half on each side.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from fcn_jax.data.canvases import round_up
from fcn_jax.errors import UserError

if TYPE_CHECKING:  # the flags below are read before JAX is imported
    from fcn_jax.models.pure_model import Network

WINDOWS = ("average", "gaussian")
MAX_WINDOW_PX = 2048
MIN_SCALE, MAX_SCALE, MAX_SCALES = 0.1, 4.0, 12


@dataclasses.dataclass(frozen=True)
class Inference:
    """How images are labelled; as it stands: whole, once, at their own size.

    windows: "", average or gaussian. window_px: their height and width. overlap: share of a window
    that the next one covers again; 0 gives the fewest windows. scales: of the views' sides, in
    0.1…4. flip: whether each view is seen mirrored too.

    Raises:
        UserError: a value that none of this can be done with.
    """

    windows: str = ""
    window_px: tuple[int, int] = (320, 480)
    overlap: float = 0.25
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        if self.windows not in ("", *WINDOWS):
            raise UserError(f"windows (={self.windows!r}) must be {' or '.join(WINDOWS)}, or empty")
        if not all(1 <= side <= MAX_WINDOW_PX for side in self.window_px):
            raise UserError(
                f"window_px (={_listed(self.window_px)}) must be a height and a width in "
                f"1…{MAX_WINDOW_PX}"
            )
        if not 0 <= self.overlap < 1:
            raise UserError(
                f"overlap (={self.overlap}) must be at least 0 and below 1: it is a share of the "
                "window"
            )
        if not self.scales or len(self.scales) > MAX_SCALES:
            raise UserError(
                f"scales (={_listed(self.scales)}) must be 1 to {MAX_SCALES} numbers: each is a "
                "pass over the image"
            )
        if not all(MIN_SCALE <= scale <= MAX_SCALE for scale in self.scales):
            raise UserError(
                f"scales (={_listed(self.scales)}) must each lie in {MIN_SCALE}…{MAX_SCALE}"
            )
        if len(set(self.scales)) < len(self.scales):
            raise UserError(f"scales (={_listed(self.scales)}) names a scale twice")

    @property
    def description(self) -> str:
        """In words."""
        height, width = self.window_px
        ways = {
            "": "whole images",
            "average": f"windows of {height}×{width}, averaged",
            "gaussian": f"windows of {height}×{width}, Gaussian weights",
        }
        words = [ways[self.windows]]
        if self.windows:
            words.append(f"overlap {self.overlap:g}")
        if self.scales != (1.0,):
            words.append("in sizes " + ", ".join(f"{scale:g}" for scale in self.scales))
        if self.flip:
            words.append("mirrored too")
        return ", ".join(words)

    @property
    def tag(self) -> str:
        """For names of files: average_320x480_0.25_scales_0.5_1_flip."""
        parts = []
        if self.windows:
            parts.append(f"{self.windows}_{self.window_px[0]}x{self.window_px[1]}_{self.overlap:g}")
        if self.scales != (1.0,):
            parts.append("_".join(["scales", *(f"{scale:g}" for scale in self.scales)]))
        return "_".join([*parts, *["flip"] * self.flip])

    @property
    def views(self) -> int:
        """How often the image is seen."""
        return len(self.scales) * (1 + self.flip)

    def check_fits(self, network: "Network") -> None:
        """The averaged rectangles are whole multiples of the network's coarsest stride (d2l).

        Raises:
            UserError: they are not.
        """
        if self.windows != "average":
            return
        stride = network.model(network.variables).stages[0]
        if any(side % stride for side in self.window_px):
            near = [round_up(side, stride) for side in self.window_px]
            raise UserError(
                f"window_px (={_listed(self.window_px)}) must be multiples of the network's "
                f"coarsest stride, {stride}, to be averaged: {_listed(near)} would do"
            )


WHOLE = Inference()


def define_inference_flags() -> None:
    """The flags of a command that labels images."""
    flags.disclaim_key_flags()  # they are the command's own, and stand in its --help
    flags.DEFINE_enum("windows", None, WINDOWS, "label in windows, and blend their logits")
    flags.DEFINE_string("window_px", "320,480", "height and width of the windows")
    flags.DEFINE_float("overlap", WHOLE.overlap, "share of a window that the next one covers again")
    flags.DEFINE_string("scales", "1", "average over the image in these sizes, say 0.5,1,1.5")
    flags.DEFINE_bool("flip", False, "average over the image and its mirror image")


def inference_from_flags() -> Inference:
    """What `define_inference_flags` was given on the command line.

    Raises:
        UserError: values that cannot be read, or that `Inference` refuses.
    """
    options = flags.FLAGS
    given = [name for name in ("window_px", "overlap") if options[name].present]
    if given and not options.windows:
        raise UserError(f"--{given[0]} is of windows: add --windows=average or --windows=gaussian")
    try:
        height, width = map(int, options.window_px.split(","))
    except ValueError:
        raise UserError(
            f"--window_px (={options.window_px}) must be a height and a width: --window_px=320,480"
        ) from None
    try:
        scales = tuple(map(float, options.scales.split(",")))
    except ValueError:
        raise UserError(
            f"--scales (={options.scales}) must be numbers: --scales=0.5,1,1.5"
        ) from None
    return Inference(
        options.windows or "", (height, width), options.overlap, scales, flip=options.flip
    )


def _listed(numbers: Sequence[float]) -> str:
    return ",".join(str(number) for number in numbers)
