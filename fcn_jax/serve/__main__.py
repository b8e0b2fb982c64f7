"""Shows a trained network in the browser, and answers HTTP requests.

    python -m fcn_jax.serve --workdir=DIR [--port=8000]

DIR is the folder of a run, an exported folder or a converted file. Open the printed address: drop,
paste or choose an image, and the page draws the prediction over it. Programs use the same server:

    curl --data-binary @photo.jpg http://127.0.0.1:8000/v1/segment --output label.png
    curl --data-binary @photo.jpg -H 'Accept: application/json' http://127.0.0.1:8000/v1/segment
    curl http://127.0.0.1:8000/v1/model
    curl http://127.0.0.1:8000/healthz

label.png is the file that predict writes; docs/serve.md describes the API. Images run on square
canvases with the sides --sides_px, which are compiled before the server answers. Larger images are
refused, or shrunk with ?fit=1 as the page does. Uploads are never written to disk.

The server listens to this machine alone. --host=0.0.0.0 lets every machine that can reach this one
send images; there is neither a login nor encryption.

    python -m fcn_jax.serve --demo=digits

needs no run: it trains LeNet on drawn digits in about a minute, or loads it from
runs/digits/lenet.safetensors, and shows every layer while you draw a digit or a string of them.

Ctrl-C or SIGTERM ends the server after the images that it has accepted. It needs
pip install 'fcn_jax[serve]'.
"""

from absl import flags

from fcn_jax.terminal import cli

if __name__ == "__main__":  # --help and mistakes in flags do not wait for the imports below
    flags.DEFINE_string("workdir", None, "folder of the run, or model file")
    flags.DEFINE_string("checkpoint", "latest", "latest, best (by mIoU), or a step")
    flags.DEFINE_enum("demo", None, ["digits"], "show LeNet reading digits instead of a run")
    flags.DEFINE_string("host", "127.0.0.1", "address to listen to; 0.0.0.0 for all networks")
    flags.DEFINE_integer("port", 8000, "port; 0 for a free one", lower_bound=0, upper_bound=65535)
    flags.DEFINE_string("sides_px", "256,512,1024", "sides of the canvases that are compiled")
    flags.DEFINE_float("max_mb", 32, "largest upload, in MB", lower_bound=0.001)
    flags.DEFINE_float(
        "max_megapixels", 50, "largest image that is decoded", lower_bound=0.001, upper_bound=80
    )
    flags.DEFINE_integer("queue", 16, "most images in progress; others get 503", lower_bound=1)
    flags.DEFINE_float(
        "time_limit_s", 60, "seconds to receive an image, and to answer", lower_bound=0.1
    )
    cli.begin()

import importlib.util
import socket
import warnings
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from PIL import Image

from fcn_jax.errors import ArgumentError, UserError
from fcn_jax.inference.trained import load_run
from fcn_jax.terminal.progress import format_duration, progress_bar, say

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from fcn_jax.serve.uploads import Limits

DIGITS = Path("runs/digits/lenet.safetensors")
MAX_SIDE_PX = 8192
MAX_CANVASES = 8
MAX_CONNECTIONS = 256


def main(arguments: list[str]) -> None:
    options = flags.FLAGS
    if bool(options.workdir) == bool(options.demo) or arguments:
        raise UserError(
            "--workdir=DIR or --demo=digits is needed, and no other argument (see --help)"
        )
    for package in ("starlette", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"serve needs the package {package}: pip install starlette uvicorn")
    # Larger images are refused by `uploads.check_header`.
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    sides = _sides(options.sides_px)
    with _bind(options.host, options.port) as listening:
        app = _demo_app() if options.demo else _run_app(options.workdir, sides)
        _serve(app, listening)


def _run_app(workdir: str, sides: list[int]) -> "Starlette":
    from fcn_jax.serve.app import make_app
    from fcn_jax.serve.segmenter import Segmenter

    predictor = load_run(workdir, flags.FLAGS.checkpoint)
    if extra := predictor.config.data.extra_channels:
        raise UserError(
            f"{workdir} also sees {', '.join(extra)}, and an upload is a single image: use predict"
        )
    if predictor.channels != 3 or predictor.config.data.ndim == 3:
        raise UserError(f"{workdir} does not see RGB images, which an upload is: use predict")
    segmenter = Segmenter(predictor, _limits(sides))
    started = perf_counter()
    with progress_bar("compiling", len(sides), "canvases") as bar:
        segmenter.warm_up(bar.advance)
    say(f"ready after {format_duration(perf_counter() - started)} of compilation")
    return make_app(segmenter)


def _demo_app() -> "Starlette":
    from fcn_jax.serve.digits import load_reader, make_digits_app

    started = perf_counter()
    reader = load_reader(DIGITS)
    reader.warm_up()
    say(f"LeNet is ready after {format_duration(perf_counter() - started)}: {DIGITS}")
    return make_digits_app(reader, _limits([32]))


def _limits(sides: list[int]) -> "Limits":
    from fcn_jax.serve.uploads import Limits

    options = flags.FLAGS
    return Limits(
        max_bytes=int(options.max_mb * 1e6),
        max_pixels=int(options.max_megapixels * 1e6),
        canvases=tuple((side, side) for side in sides),
        waiting=options.queue,
        time_limit_s=options.time_limit_s,
    )


def _serve(app: "Starlette", listening: socket.socket) -> None:
    """Answers requests until a signal comes, and those that were accepted before it."""
    import uvicorn

    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            log_level="warning",
            server_header=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=int(flags.FLAGS.time_limit_s) + 1,
        )
    )
    listening.listen(MAX_CONNECTIONS)  # who connects from now on waits for an answer
    _announce(listening)
    try:
        server.run(sockets=[listening])
    finally:
        app.state.worker.close()


def _sides(text: str) -> list[int]:
    try:
        sides = sorted({int(side) for side in text.split(",")})
    except ValueError:
        raise ArgumentError("sides_px", text, "must be numbers such as 256,512,1024") from None
    if len(sides) > MAX_CANVASES or not all(1 <= side <= MAX_SIDE_PX for side in sides):
        raise ArgumentError(
            "sides_px", text, f"must be at most {MAX_CANVASES} numbers in 1…{MAX_SIDE_PX}"
        )
    return sides


def _bind(host: str, port: int) -> socket.socket:
    """Binds a socket before anything slow; clients are refused until the server listens.

    Raises:
        UserError: the address cannot be used, or the port is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
        except OSError:
            listening.close()
            raise
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"cannot listen to {host}, port {port} ({error}): give another --port or --host"
        ) from None
    return listening


def _announce(listening: socket.socket) -> None:
    family, address = listening.family, listening.getsockname()
    ipv6 = family == socket.AF_INET6
    shown = f"[{address[0]}]" if ipv6 else address[0]
    if address[0] in ("127.0.0.1", "::1"):
        reach = "this machine alone; --host=0.0.0.0 opens it to others, without login or encryption"
    else:
        reach = "every machine that reaches this one can send images, without login or encryption"
    say(f"open http://{shown}:{address[1]} ({reach})")


if __name__ == "__main__":
    cli.run(main)
