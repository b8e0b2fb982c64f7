"""What resizing with interpolation, and JPEG, leave at the contours of a label map.

Both put values where nobody drew them. Interpolation lays thin lines of the values in between
along the contour of two classes; JPEG strews single pixels about it. In a label map as it was
drawn, contours pass from one class to the next at once, and a pixel has a neighbour of its kind.

The limits were set on the 882 masks of VOC 2012 at hand, drawn shapes and 31,463 slices of labelled
MRI volumes, none of which show a smear, and on the first two without void, resized by 0.5 to 4 with
three filters, and saved as JPEG of qualities 50 to 100. What leaves no value cannot be seen:
between labels 0 and 1 there is none. Which of the two was the cause is a guess in label maps
without void, where cubic filters and JPEG look alike.
"""

from typing import Literal, NamedTuple

import numpy as np

from fcn_jax.data.labels import IGNORE_INDEX

THIN_PX = 3
MIN_SIGHTINGS = 15  # of ramps or pixels; fewer occur in small masks drawn by hand
RAMPS = 0.12  # of the contours; VOC's masks: at most 0.011
LONE_PIXELS = 0.08  # for each contour crossed; VOC's masks: at most 0.045, without void 0.074
EXTREMES = 0.13  # of the lone pixels; above it, JPEG
BUMPS = 0.24  # of ramps and bumps; above it, JPEG
BUMP_HEIGHT = 3  # of what JPEG adds or takes in an even place
OFTEN = 0.05  # of the ramps; a value found there less often is chance


class Smear(NamedTuple):
    """cause: of the values at the contours. between: those that occur in ramps, sorted."""

    cause: Literal["interpolated", "jpeg"]
    between: tuple[int, ...]


class _Ramps(NamedTuple):
    ramps: int  # contours crossed by way of values in between
    contours: int  # all that were crossed
    values: np.ndarray  # how often each value lay in between, (256,)
    bumps: int  # short runs of a value near the one on either side


def find_smear(values: np.ndarray) -> Smear | None:
    """Signs that a label map, or one channel of a mask in colour, is not as it was drawn.

    Args:
      values: uint8 (h, w).
    """
    if min(values.shape) < 3 or np.count_nonzero(np.bincount(values.reshape(-1))) < 3:
        return None
    across, down = _ramps(values), _ramps(np.ascontiguousarray(values.T))
    ramps, contours = across.ramps + down.ramps, across.contours + down.contours
    lone, extreme = _lone_pixels(values)
    ramped = ramps > RAMPS * contours and ramps >= MIN_SIGHTINGS
    strewn = lone > LONE_PIXELS * contours and lone >= MIN_SIGHTINGS
    if not ramped and not strewn:
        return None
    in_between = across.values + down.values
    between = np.flatnonzero(in_between > OFTEN * in_between.sum())
    bumps = across.bumps + down.bumps
    jpeg = (strewn and extreme > EXTREMES * lone) or bumps > BUMPS * (ramps + bumps)
    return Smear("jpeg" if jpeg else "interpolated", tuple(between.tolist()))


def _ramps(values: np.ndarray) -> _Ramps:
    """Counted along the rows, in runs of one value: a ramp is a short run between two others."""
    height, width = values.shape
    begins = np.ones((height, width), bool)
    begins[:, 1:] = values[:, 1:] != values[:, :-1]
    start = np.flatnonzero(begins)
    value = values.reshape(-1)[start].astype(np.int16)
    row = start // width
    length = np.diff(start, append=height * width)
    rising = np.zeros(len(start), np.int8)  # from a run to the next, in the same row
    rising[:-1] = np.where(row[1:] == row[:-1], np.sign(np.diff(value)), 0)
    ramp = np.zeros(len(start), bool)
    ramp[1:] = (rising[1:] != 0) & (rising[1:] == rising[:-1]) & (length[1:] <= THIN_PX)
    first = ramp.copy()  # of the runs of one ramp
    first[1:] &= ~ramp[:-1]
    at_once = (rising[:-1] != 0) & ~ramp[1:] & ~ramp[:-1]
    step = np.diff(value)
    bump = (rising[1:] * rising[:-1] < 0) & (length[1:] <= THIN_PX) & (value[1:] != IGNORE_INDEX)
    bump[:-1] &= (step[:-1] == -step[1:]) & (np.abs(step[:-1]) <= BUMP_HEIGHT)
    count = int(first.sum())
    return _Ramps(
        ramps=count,
        contours=count + int(at_once.sum()),
        values=np.bincount(value[ramp], minlength=IGNORE_INDEX + 1),
        bumps=int(bump.sum()),
    )


def _lone_pixels(values: np.ndarray) -> tuple[int, int]:
    """Pixels unlike all eight around them, and those among them above or below all eight."""
    height, width = values.shape
    core = values[1:-1, 1:-1]
    lone = core != IGNORE_INDEX  # a thin border of void breaks into pixels where a mask is halved
    above, below = lone.copy(), lone.copy()
    for down in range(3):
        for right in range(3):
            if (down, right) == (1, 1):
                continue
            other = values[down : height - 2 + down, right : width - 2 + right]
            lone &= core != other
            above &= core > other
            below &= core < other
    return int(lone.sum()), int((above | below).sum())
