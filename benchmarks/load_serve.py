"""Sends many images to a server at the same time, and compares every answer with predict's file.

    python -m benchmarks.load_serve --workdir=RUN [--clients=8] [--images=200]

The server runs as a process of its own on this machine. The images are drawn, in random sizes. A
client that gets 503 waits as long as the server says. Printed are images per second, latencies,
and the server's memory after a quarter of the images and at the end.
"""

from absl import flags

from fcn_jax.terminal import cli

if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "folder of the run, or model file", required=True)
    flags.DEFINE_integer("clients", 8, "clients at the same time", lower_bound=1)
    flags.DEFINE_integer("images", 200, "number of images", lower_bound=4)
    flags.DEFINE_integer("max_side_px", 512, "longest side of an image", lower_bound=8)
    cli.begin()

import http.client
import io
import re
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter, sleep

import numpy as np
from PIL import Image

from fcn_jax.data import shapes
from fcn_jax.errors import UserError
from fcn_jax.inference.image_files import predict_file
from fcn_jax.inference.trained import load_run
from fcn_jax.terminal.progress import progress_bar, say

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF")


def main(arguments: list[str]) -> None:
    options = flags.FLAGS
    images = _images(options.images, options.max_side_px)
    side = options.max_side_px
    command = [sys.executable, "-m", "fcn_jax.serve", f"--workdir={options.workdir}", "--port=0"]
    command += [f"--sides_px={side // 2},{side}", "--queue=6"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        port = _port(server)
        memory = [_resident_mb(server.pid)]
        done, lock, refused = 0, threading.Lock(), 0
        latencies = []

        def ask(image: bytes) -> bytes:
            nonlocal done, refused
            started = perf_counter()
            while True:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
                connection.request("POST", "/v1/segment", image)
                answer = connection.getresponse()
                content = answer.read()
                connection.close()
                if answer.status != 503:
                    break
                with lock:
                    refused += 1
                sleep(float(answer.headers["Retry-After"]))
            if answer.status != 200:
                raise UserError(f"the server answered {answer.status}: {content[:300]!r}")
            with lock:
                done += 1
                latencies.append(perf_counter() - started)
                if done in (len(images) // 4, len(images) // 2, len(images)):
                    memory.append(_resident_mb(server.pid))
                bar.advance()
            return content

        started = perf_counter()
        with (
            progress_bar("sending", len(images), "images") as bar,
            ThreadPoolExecutor(options.clients) as clients,
        ):
            answers = list(clients.map(ask, images))
        seconds = perf_counter() - started
    finally:
        server.terminate()
        server.wait(60)
    low, high = np.percentile(latencies, [50, 95])
    say(
        f"{len(images)} images from {options.clients} clients: {len(images) / seconds:.1f} images/s"
        f", median {low:.2f} s, 95 % within {high:.2f} s; {refused} times 503"
    )
    say("memory at the start, after 1/4, 1/2 and all: " + ", ".join(f"{x:.0f} MB" for x in memory))
    different = _different(options.workdir, images, answers)
    if different:
        raise UserError(f"{different} of {len(images)} answers differ from predict's files")
    say(f"all {len(images)} answers have the bytes of predict's files, but for the text entry")


def _images(number: int, max_side_px: int) -> list[bytes]:
    rng = np.random.default_rng(0)
    files = []
    for index in range(number):
        image, _ = shapes.draw(f"val_{index % 100:03}")
        size = tuple(rng.integers(8, max_side_px + 1, 2).tolist())
        file = io.BytesIO()
        Image.fromarray(image).resize(size).save(file, FORMATS[index % len(FORMATS)])
        files.append(file.getvalue())
    return files


def _port(server: subprocess.Popen[str]) -> int:
    assert server.stdout is not None
    for line in server.stdout:
        if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
            return int(found[1])
    raise UserError("the server did not start")


def _resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1000  # type: ignore[index]


def _different(workdir: str, images: list[bytes], answers: list[bytes]) -> int:
    predictor = load_run(workdir)
    predictor.choose_canvases(np.array([_size(image) for image in images]))  # as predict does
    different = 0
    with (
        tempfile.TemporaryDirectory() as folder,
        progress_bar("comparing", len(images), "images") as bar,
    ):
        image_file, target = Path(folder) / "x.image", Path(folder) / "label.png"
        for image, answer in zip(images, answers, strict=True):
            image_file.write_bytes(image)
            predict_file(predictor, image_file, target, overlay=False)
            different += chunks_without_text(target.read_bytes()) != chunks_without_text(answer)
            bar.advance()
    return different


def _size(image: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(image)) as opened:
        return opened.height, opened.width


def chunks_without_text(png: bytes) -> list[bytes]:
    """Returns the chunks of a PNG but the text, in which predict notes what a file was made of."""
    chunks, at = [], 8
    while at < len(png):
        end = at + 12 + int.from_bytes(png[at : at + 4], "big")
        if png[at + 4 : at + 8] != b"tEXt":
            chunks.append(png[at:end])
        at = end
    return chunks


if __name__ == "__main__":
    cli.run(main)
