"""Compares a backbone's ONNX file in a browser with the network.

    npm pack onnxruntime-web && tar xzf onnxruntime-web-*.tgz
    python -m tests.formats.in_browser package/dist [BACKBONE...]

ONNX Runtime Web runs it by WebAssembly, with one thread, in headless Chromium. Needs onnx,
playwright and Chromium. The weights are drawn at random; batch statistics are those of an image.
"""

import base64
import functools
import http.server
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Page, sync_playwright

from fcn_jax.formats import onnx_file
from fcn_jax.models.pure_model import PureModel
from fcn_jax.models.tape import record
from tests.formats.networks import (
    SIZES,
    difference,
    of_config,
    tensors_of,
    with_statistics_of_an_image,
)

RUN = """async ([bytes, height, width]) => {
  ort.env.wasm.numThreads = 1;
  window.session ??= await ort.InferenceSession.create("fcn.onnx");
  const image = Uint8Array.from(atob(bytes), letter => letter.charCodeAt(0));
  const shape = [1, height, width, 3];
  const { classes, logits } = await session.run({ image: new ort.Tensor("uint8", image, shape) });
  return [Array.from(logits.data), logits.dims, Array.from(classes.data)];
}"""


class Files(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    handler = functools.partial(Files, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def in_page(page: Page, image: np.ndarray) -> dict[str, np.ndarray]:
    _, height, width, _ = image.shape
    encoded = base64.b64encode(image.tobytes()).decode()
    values, shape, classes = page.evaluate(RUN, [encoded, height, width])
    logits = np.moveaxis(np.asarray(values, np.float32).reshape(shape), 1, -1)
    np.testing.assert_array_equal(np.reshape(classes, logits.shape[:3]), logits.argmax(-1))
    return {"": logits}


def compare(backbone: str, runtime: Path) -> None:
    network: PureModel = with_statistics_of_an_image(of_config(backbone=backbone, skips=2))
    data = onnx_file.build(record(network), tensors_of(network), channels=3, metadata={})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in (*runtime.glob("ort.wasm.min.*"), *runtime.glob("ort-wasm-simd-threaded.*")):
            shutil.copy(file, folder)
        (folder / "fcn.onnx").write_bytes(data)
        (folder / "index.html").write_text("<script src='ort.wasm.min.js'></script>")
        with served(folder) as address, sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            page = browser.new_page()
            page.goto(f"{address}/index.html")
            found = difference(network, functools.partial(in_page, page), (*SIZES, (90, 125)))
            print(
                f"{backbone} in Chromium {browser.version}: logits {found.logits:.0e} of their "
                f"range, {found.classes} pixels of another class",
                flush=True,
            )


if __name__ == "__main__":
    for each in sys.argv[2:] or ["squeezenet"]:
        compare(each, Path(sys.argv[1]))
