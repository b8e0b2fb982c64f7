"""Detects label maps that were resized with interpolation or saved as JPEG.

Both add values that nobody drew. Interpolation adds thin lines of intermediate values along the
contour between two classes; JPEG scatters single pixels around it. In a label map as drawn, a
contour goes from one class directly to the next, and a pixel has neighbours of its class.

The thresholds were chosen on 882 masks of VOC 2012, drawn shapes and 31,463 slices of labelled MRI
volumes, none of which show artefacts; and on the first two without void, resized by factors 0.5 to
4 with three filters, and saved as JPEG of qualities 50 to 100. An artefact that adds no value is
invisible: there is none between labels 0 and 1. The cause is a guess in label maps without void,
where cubic filters and JPEG look alike.
"""

from typing import Literal, NamedTuple

import numpy as np

from fcn_jax.data.labels import IGNORE_INDEX

THIN_PX = 3
MIN_COUNT = 15  # ramps or lone pixels; fewer occur in small masks drawn by hand
RAMP_SHARE = 0.12  # of the contours; VOC's masks: at most 0.011
LONE_SHARE = 0.08  # lone pixels per contour crossing; VOC: at most 0.045, without void 0.074
EXTREME_SHARE = 0.13  # of the lone pixels; more indicate JPEG
BUMP_SHARE = 0.24  # of ramps and bumps; more indicate JPEG
BUMP_HEIGHT = 3  # largest change by JPEG in a uniform area
VALUE_SHARE = 0.05  # of the ramps; a value that is rarer is there by chance


class Artefact(NamedTuple):
    """kind: the kind of fault. between: the intermediate values that occur in ramps, ascending."""

    kind: Literal["mask_interpolated", "mask_was_jpeg"]
    between: tuple[int, ...]


def find_artefact(values: np.ndarray) -> Artefact | None:
    """Looks for interpolation and JPEG in a label map, or in one channel of a mask in colour.

    Args:
      values: uint8 (h, w).
    """
    if min(values.shape) < 3 or np.count_nonzero(np.bincount(values.reshape(-1))) < 3:
        return None
    ramps, contours, bumps, in_ramps = _count_crossings(values)
    lone, extreme = _count_lone_pixels(values)
    has_ramps = ramps > RAMP_SHARE * contours and ramps >= MIN_COUNT
    has_lone = lone > LONE_SHARE * contours and lone >= MIN_COUNT
    if not has_ramps and not has_lone:
        return None
    between = np.flatnonzero(in_ramps > VALUE_SHARE * in_ramps.sum())
    is_jpeg = (has_lone and extreme > EXTREME_SHARE * lone) or bumps > BUMP_SHARE * (ramps + bumps)
    return Artefact("mask_was_jpeg" if is_jpeg else "mask_interpolated", tuple(between.tolist()))


def _count_crossings(values: np.ndarray) -> tuple[int, int, int, np.ndarray]:
    """Counts, along all rows and columns, how contours are crossed.

    Lines are divided into runs of one value. A ramp is a sequence of short runs that rise or fall.

    Returns:
      Ramps; all crossings, by ramps or directly; bumps, which are short runs that differ little
      from equal runs on both sides; and how often each value occurs in a ramp, int (256,).
    """
    height, width = values.shape
    pixels = np.concatenate([values.reshape(-1), values.T.reshape(-1)]).astype(np.int16)
    begins_line = np.zeros(len(pixels), bool)
    begins_line[: values.size : width] = begins_line[values.size :: height] = True
    start = np.flatnonzero(begins_line | (np.diff(pixels, prepend=-1) != 0))
    value = pixels[start]
    is_thin = np.diff(start, append=len(pixels)) <= THIN_PX
    step = np.diff(value)
    rising = np.zeros(len(start), np.int8)  # sign of the step to the next run in the same line
    rising[:-1] = np.where(begins_line[start[1:]], 0, np.sign(step))
    ramp = np.zeros(len(start), bool)
    ramp[1:] = (rising[1:] != 0) & (rising[1:] == rising[:-1]) & is_thin[1:]
    first = ramp.copy()  # first run of a ramp
    first[1:] &= ~ramp[:-1]
    direct = (rising[:-1] != 0) & ~ramp[1:] & ~ramp[:-1]  # crossings without a ramp
    bump = (rising[1:] * rising[:-1] < 0) & is_thin[1:] & (value[1:] != IGNORE_INDEX)
    bump[:-1] &= (step[:-1] == -step[1:]) & (np.abs(step[:-1]) <= BUMP_HEIGHT)
    ramps = int(first.sum())
    in_ramps = np.bincount(value[ramp], minlength=IGNORE_INDEX + 1)
    return ramps, ramps + int(direct.sum()), int(bump.sum()), in_ramps


def _count_lone_pixels(values: np.ndarray) -> tuple[int, int]:
    """Counts pixels that differ from all 8 neighbours, and those above or below all of them."""
    height, width = values.shape
    core = values[1:-1, 1:-1]
    lone = core != IGNORE_INDEX  # thin borders of void break into pixels when a mask is halved
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
