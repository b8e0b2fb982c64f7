"""The flags of predict and evaluate that choose windows, scales and mirror images.

This module imports neither JAX nor NumPy: flags are defined before anything slow is imported.
"""

from typing import Any

from absl import flags

from fcn_jax.errors import ArgumentError, UserError


def define_view_flags() -> None:
    """Defines the flags; `inference.options.Inference` has their defaults and ranges."""
    flags.disclaim_key_flags()  # absl lists them as the command's own
    flags.DEFINE_string(
        "windows", None, "predict windows and blend their logits: average, gaussian"
    )
    flags.DEFINE_string("window_px", None, "height,width of the windows (default: 320,480)")
    flags.DEFINE_float(
        "overlap", None, "share of a window that the next one covers again (default: 0.25)"
    )
    flags.DEFINE_string("scales", None, "average over these scales of the image, such as 0.5,1,1.5")
    flags.DEFINE_bool("flip", False, "average over the image and its mirror image")


def view_arguments() -> dict[str, Any]:
    """Returns the arguments for `Inference` that were given on the command line.

    Raises:
        ArgumentError: a flag is not a list of numbers.
        UserError: a flag needs another one.
    """
    options = flags.FLAGS
    for name in ("window_px", "overlap"):
        if options[name].present and not options.windows:
            raise UserError(f"--{name} needs --windows=average or --windows=gaussian")
    arguments = {
        name: options[name].value
        for name in ("windows", "overlap", "flip")
        if options[name].present
    }
    for name, kind, example in (("window_px", int, "320,480"), ("scales", float, "0.5,1,1.5")):
        text = options[name].value
        if text is None:
            continue
        try:
            arguments[name] = tuple(map(kind, text.split(",")))
        except ValueError:
            raise ArgumentError(name, text, f"must be numbers such as {example}") from None
    return arguments
