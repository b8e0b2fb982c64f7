"""Measures how fast the parts that take the time are, beside other implementations of the same.

    python -m fcn_jax.benchmark [--suites=upsample,train_step] [--against=torch] [--repeats=N]
                                [--json=FILE] [--small]

upsample    transposed convolution of 21 classes to about 320×480, batch 2, by strides 2 to 32,
            forward and with its gradients: ours, flax's, lax's and, where asked, PyTorch's
train_step  a whole step of FCN-8s on SqueezeNet, from canvases of 512×512 bytes to new parameters:
            scale, crop and flip to 320×320, forward, loss, gradients, AdamW; batch 8

All contenders of a case run in turn, in one process, so that whatever else the machine does hits
them alike. Times are medians after a warm-up; ± is half the distance between the quartiles; the
ratio is a contender's median over that of the first.

A further suite is one function that yields cases, named in `SUITES`.
"""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from flax import nnx
from jax import lax
from rich import box
from rich.console import Console
from rich.table import Table

from fcn_jax import cli, optim, parallel
from fcn_jax.config import Config
from fcn_jax.data.labels import VOID_LABEL
from fcn_jax.errors import UserError
from fcn_jax.models.build import build
from fcn_jax.models.fcn import DATA_AXIS
from fcn_jax.models.upsampling import bilinear_kernel, bilinear_upsample, conv_transpose
from fcn_jax.progress import progress_bar
from fcn_jax.step import Network, create_train_state, make_train_step

NUM_CLASSES = 21
WARM_UP_CALLS = 2


def main(arguments: list[str]) -> None:
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r} (see --help)")
    options = flags.FLAGS
    if options.json:
        check_writable(options.json)
    report = benchmark(
        options.suites,
        repeats=options.repeats,
        peer=Peer() if options.against == "torch" else None,
        small=options.small,
    )
    Console().print(results_table(report))
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")


def check_writable(path: str) -> None:
    """Raises UserError unless a file can be written there: before the time is spent."""
    try:
        with open(path, "a"):
            pass
    except OSError as error:
        raise UserError(f"--json (={path}) cannot be written: {error.strerror}") from error


def benchmark(
    suites: Sequence[str], *, repeats: int, peer: "Peer | None" = None, small: bool = False
) -> dict[str, Any]:
    """Runs suites by name; returns what can be written as JSON.

    Args:
        suites: keys of `SUITES`.
        repeats: timed calls of each contender.
        peer: PyTorch, where it is to be compared with.
        small: tiny sizes, that show whether all of it runs; their times mean nothing.

    Raises:
        UserError: an unknown suite, or nothing to repeat.
    """
    for name in suites:
        if name not in SUITES:
            raise UserError(f"--suites (={name!r}) must be among {', '.join(SUITES)}")
    if repeats < 1:
        raise UserError(f"--repeats (={repeats}) must be above 0")
    results = []
    for name in suites:
        cases = list(SUITES[name](small, peer))
        with progress_bar(name, len(cases), "cases") as bar:
            for case in cases:
                results += summarize(name, case.name, measure(case.build(), repeats))
                bar.advance()
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "versions": versions(peer),
        "repeats": repeats,
        "small": small,
        "results": results,
    }


# --- Measuring


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to do. build: the contenders, by name; each call does it once and waits for it."""

    name: str
    build: Callable[[], Mapping[str, Callable[[], object]]]


def measure(contenders: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call of each contender, all of them in turn."""
    for call in contenders.values():
        for _ in range(WARM_UP_CALLS):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, call in contenders.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def summarize(
    suite: str, case: str, seconds: Mapping[str, Sequence[float]]
) -> list[dict[str, Any]]:
    """A row for each contender. Names that differ in brackets only are one: the faster is kept."""
    rows: dict[str, dict[str, Any]] = {}
    for name, times in seconds.items():
        lower, median, upper = (float(q) for q in np.percentile(times, [25, 50, 75]))
        row = {
            "suite": suite,
            "case": case,
            "contender": name,
            "median_s": median,
            "lower_quartile_s": lower,
            "upper_quartile_s": upper,
        }
        kept = rows.get(name.partition(" (")[0])
        if kept is None or median < kept["median_s"]:
            rows[name.partition(" (")[0]] = row
    reference = next(iter(rows.values()))["median_s"]
    return [{**row, "ratio": row["median_s"] / reference} for row in rows.values()]


def results_table(report: Mapping[str, Any]) -> Table:
    versions, machine = report["versions"], report["hardware"]
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title=f"{machine['cpu']}, {machine['cores']} cores, {', '.join(machine['devices'])}\n"
        + ", ".join(f"{name} {version}" for name, version in versions.items()),
        caption=f"{report['date']}, medians of {report['repeats']}"
        + (", small sizes: the times mean nothing" if report["small"] else ""),
    )
    table.add_column("case")
    table.add_column("contender")
    for heading in ("ms", "±", "ratio"):
        table.add_column(heading, justify="right", no_wrap=True)
    shown = None
    for row in report["results"]:
        case = f"{row['suite']} {row['case']}"
        if shown not in (None, case):
            table.add_section()
        spread = (row["upper_quartile_s"] - row["lower_quartile_s"]) / 2
        table.add_row(
            case if case != shown else "",
            row["contender"],
            f"{1e3 * row['median_s']:.1f}",
            f"{1e3 * spread:.1f}",
            f"{row['ratio']:.2f}",
        )
        shown = case
    return table


def hardware() -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "devices": [f"{device.platform}:{device.device_kind}" for device in jax.devices()],
    }


def versions(peer: "Peer | None") -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("fcn_jax", "jax", "jaxlib", "flax"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
            found[package] = "unknown"
    if peer is not None:
        found["torch"] = peer.torch.__version__
    return found


# --- Suite: upsample


def upsample(small: bool, peer: "Peer | None") -> Iterator[Case]:
    output = (32, 64) if small else (320, 480)
    for stride in (2, 8) if small else (2, 8, 16, 32):
        for backward in (False, True):
            name = f"stride {stride}{' + gradients' if backward else ''}"
            yield Case(
                name,
                lambda s=stride, b=backward: upsampling_contenders(s, output, b, peer),  # type: ignore[misc]
            )


def upsampling_contenders(
    stride: int, output_size: tuple[int, int], backward: bool, peer: "Peer | None"
) -> dict[str, Callable[[], object]]:
    """Kernel 2·stride, padding stride/2; gradients of the input and of kernels that learn."""
    random = np.random.default_rng(0)
    size = [n // stride for n in output_size]
    values = random.standard_normal((2, *size, NUM_CLASSES)).astype(np.float32)
    cotangent = random.standard_normal((2, *output_size, NUM_CLASSES)).astype(np.float32)
    kernel = bilinear_kernel(2 * stride, NUM_CLASSES)
    geometry: dict[str, Any] = {
        "stride": stride,
        "crop": stride // 2,
        "output_size": tuple(output_size),
    }
    flax_layer = nnx.eval_shape(
        lambda: nnx.ConvTranspose(
            NUM_CLASSES,
            NUM_CLASSES,
            kernel.shape[:2],
            strides=stride,
            use_bias=False,
            rngs=nnx.Rngs(0),
        )
    )
    graph, _ = nnx.split(flax_layer)

    def learned(x: jax.Array, k: jax.Array) -> jax.Array:
        return conv_transpose(x, k, **geometry)

    def fixed(x: jax.Array) -> jax.Array:
        return bilinear_upsample(x, 2 * stride, **geometry)

    def with_flax(x: jax.Array, k: jax.Array) -> jax.Array:
        return nnx.merge(graph, nnx.State({"kernel": nnx.Param(k)}))(x)

    def with_lax(x: jax.Array, k: jax.Array) -> jax.Array:
        return lax.conv_transpose(x, k, (stride, stride), "SAME")

    def contender(
        function: Callable[..., jax.Array], *arguments: np.ndarray
    ) -> Callable[[], object]:
        def forward(*inputs: jax.Array) -> Any:
            return function(*inputs)

        def forward_and_backward(*inputs: jax.Array) -> Any:
            result, pull_back = jax.vjp(function, *inputs[:-1])
            return result, pull_back(inputs[-1])

        inputs = jax.device_put((*arguments, cotangent) if backward else arguments)
        compiled = jax.jit(forward_and_backward if backward else forward)
        return lambda: jax.block_until_ready(compiled(*inputs))

    contenders = {
        "fcn_jax learned": contender(learned, values, kernel),
        "fcn_jax fixed": contender(fixed, values),
        "flax nnx.ConvTranspose": contender(with_flax, values, kernel),
        "lax.conv_transpose": contender(with_lax, values, kernel),
    }
    if peer is not None:
        contenders |= peer.upsampling(values, kernel, cotangent, stride, backward)
    return contenders


# --- Suite: train_step


def train_step(small: bool, peer: "Peer | None") -> Iterator[Case]:
    config = train_step_config(small)
    canvas_px = 64 if small else 512
    crop = "×".join(map(str, config.augment.crop_px))
    yield Case(
        f"FCN-8s SqueezeNet {crop} batch {config.train.batch_size}",
        lambda: train_step_contenders(config, canvas_px, peer),
    )


def train_step_config(small: bool) -> Config:
    config = Config()
    config.model.backbone = "squeezenet"
    config.augment.crop_px = (32, 32) if small else (320, 320)
    config.train.batch_size = jax.device_count() * (2 if small else 8)
    config.train.steps = 1000
    config.optim.schedule = "constant"
    config.check()
    return config


def train_step_contenders(
    config: Config, canvas_px: int, peer: "Peer | None"
) -> dict[str, Callable[[], object]]:
    model = build(config.model, NUM_CLASSES, rngs=nnx.Rngs(0), axis_name=DATA_AXIS)
    network = Network(model)
    weights = jax.tree.map(np.array, network.variables[0])  # of their own: the step donates them
    optimizer = optim.build(config.optim, network.variables[0], config.train.steps)
    step = parallel.on_all_devices(make_train_step(network, optimizer, config), donate_state=True)
    state = create_train_state(network.variables, optimizer)
    batch = canvases(config.train.batch_size, canvas_px)

    def run() -> object:
        nonlocal state
        state, metrics = step(state, batch)
        return jax.block_until_ready((state, metrics))

    contenders: dict[str, Callable[[], object]] = {"fcn_jax": run}
    if peer is not None:
        for channels_last in (False, True):
            name = f"PyTorch ({'channels_last' if channels_last else 'contiguous'})"
            peer_step = TorchStep(peer, weights, config, channels_last=channels_last)
            contenders[name] = lambda run=peer_step: run(batch)  # type: ignore[misc]
    return contenders


def canvases(batch_size: int, canvas_px: int) -> dict[str, np.ndarray]:
    """Noise, with labels in blocks of 16 pixels, that fills its canvases."""
    random = np.random.default_rng(0)
    blocks = random.integers(0, NUM_CLASSES, (batch_size, canvas_px // 16, canvas_px // 16))
    return {
        "image": random.integers(0, 256, (batch_size, canvas_px, canvas_px, 3), np.uint8),
        "label": blocks.repeat(16, axis=1).repeat(16, axis=2).astype(np.uint8),
        "size": np.full((batch_size, 2), canvas_px, np.int32),
    }


SUITES: dict[str, Callable[[bool, "Peer | None"], Iterator[Case]]] = {
    "upsample": upsample,
    "train_step": train_step,
}


# --- PyTorch, to compare with


class Peer:
    """PyTorch, on the GPU where JAX is on one, else on all cores.

    Raises:
        UserError: it is not installed.
    """

    def __init__(self) -> None:
        try:
            import torch
        except ImportError as error:
            raise UserError(
                "--against=torch needs PyTorch, which is not installed: pip install torch"
            ) from error
        self.torch: Any = torch
        torch.set_num_threads(os.cpu_count() or 1)
        on_gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
        self.device = torch.device("cuda" if on_gpu else "cpu")

    def wait(self) -> None:
        if self.device.type == "cuda":
            self.torch.cuda.synchronize()

    def images(self, values: np.ndarray, channels_last: bool) -> Any:
        """(b, h, w, c) to (b, c, h, w), in one of the two layouts in memory."""
        tensor = self.torch.tensor(values).permute(0, 3, 1, 2).to(self.device)
        return tensor if channels_last else tensor.contiguous()

    def upsampling(
        self,
        values: np.ndarray,
        kernel: np.ndarray,
        cotangent: np.ndarray,
        stride: int,
        backward: bool,
    ) -> dict[str, Callable[[], object]]:
        def contender(channels_last: bool) -> Callable[[], object]:
            x = self.images(values, channels_last)
            layout = self.torch.channels_last if channels_last else self.torch.contiguous_format
            weight = self.torch.tensor(kernel.transpose(2, 3, 0, 1).copy(), device=self.device)
            weight = weight.to(memory_format=layout)
            x.requires_grad_(backward)
            weight.requires_grad_(backward)
            gradient = self.images(cotangent, channels_last)

            def run() -> object:
                result = self.torch.nn.functional.conv_transpose2d(
                    x, weight, stride=stride, padding=stride // 2
                )
                if backward:
                    self.torch.autograd.grad(result, (x, weight), gradient)
                self.wait()
                return result

            return run

        return {
            "PyTorch (contiguous)": contender(channels_last=False),
            "PyTorch (channels_last)": contender(channels_last=True),
        }


class TorchStep:
    """The step of `step.py` on FCN-8s over SqueezeNet, as one would write it in PyTorch.

    weights: the parameters of our network, as nested dicts.
    """

    def __init__(
        self, peer: Peer, weights: Mapping[str, Any], config: Config, *, channels_last: bool
    ):
        self.peer = peer
        self.torch = peer.torch
        self.functional: Any = peer.torch.nn.functional
        self.config = config
        self.channels_last = channels_last
        layout = self.torch.channels_last if channels_last else self.torch.contiguous_format
        self.weights: dict[str, Any] = {}
        leaves, _ = jax.tree_util.tree_flatten_with_path(weights)
        for path, leaf in leaves:
            name = ".".join(entry.key for entry in path)
            tensor = self.torch.tensor(np.asarray(leaf), device=peer.device)
            if leaf.ndim == 4:
                # Convolutions hold (out, in, h, w), transposed ones (in, out, h, w).
                order = (2, 3, 0, 1) if "upsample" in name else (3, 2, 0, 1)
                tensor = tensor.permute(*order).contiguous().to(memory_format=layout)
            self.weights[name] = tensor.requires_grad_()
        decaying = [n for n in self.weights if n.endswith("kernel") and "upsample" not in n]
        rate, decay = config.optim.learning_rate, config.optim.weight_decay
        self.optimizer = self.torch.optim.AdamW(
            [
                {"params": [self.weights[n] for n in decaying], "weight_decay": decay},
                {
                    "params": [w for n, w in self.weights.items() if n not in decaying],
                    "weight_decay": 0.0,
                },
            ],
            lr=rate,
        )

    def __call__(self, batch: Mapping[str, np.ndarray]) -> None:
        image, label = self.augment(batch)
        self.optimizer.zero_grad(set_to_none=True)
        logits = self.logits(image, train=True)
        loss = self.functional.cross_entropy(logits, label, ignore_index=VOID_LABEL)
        loss.backward()
        self.optimizer.step()
        self.peer.wait()

    def augment(self, batch: Mapping[str, np.ndarray]) -> tuple[Any, Any]:
        """Scale, crop, flip; scales only what the crop shows. Of images that fill their canvas."""
        random = np.random.default_rng()
        side = self.config.augment.crop_px[0]
        mean = self.torch.tensor([104.00699, 116.66877, 122.67892], device=self.peer.device)
        images = self.torch.zeros((len(batch["image"]), 3, side, side), device=self.peer.device)
        labels = self.torch.full(
            (len(images), side, side), VOID_LABEL, dtype=self.torch.long, device=self.peer.device
        )
        for index, (pixels, classes) in enumerate(zip(batch["image"], batch["label"], strict=True)):
            scale = random.uniform(*self.config.augment.scale)
            shown = min(round(side / scale), len(classes))
            top, left = random.integers(0, len(classes) - shown + 1, 2)
            window = (slice(top, top + shown), slice(left, left + shown))
            size = min(round(shown * scale), side)
            cut = self.torch.tensor(pixels[window]).to(self.peer.device).permute(2, 0, 1).flip(0)
            cut = self.functional.interpolate(cut[None].float(), (size, size), mode="bilinear")
            cut_label = self.torch.tensor(classes[window]).to(self.peer.device)
            cut_label = self.functional.interpolate(
                cut_label[None, None].float(), (size, size), mode="nearest"
            )
            if random.random() < 0.5:
                cut, cut_label = cut.flip(3), cut_label.flip(3)
            images[index, :, :size, :size] = cut[0] - mean[:, None, None]
            labels[index, :size, :size] = cut_label[0, 0].long()
        if self.channels_last:
            images = images.contiguous(memory_format=self.torch.channels_last)
        return images, labels

    def logits(self, x: Any, *, train: bool) -> Any:
        """Normalised images (b, 3, h, w), sides divisible by 16, to logits (b, k, h, w)."""
        pool = self.functional.max_pool2d
        x = self.convolution_relu(x, "backbone.conv1", stride=2, padding=1)
        x = self.fire(self.fire(pool(x, 3, 2, 1), "fire2"), "fire3")
        features = {4: x}
        x = self.fire(self.fire(pool(x, 3, 2, 1), "fire4"), "fire5")
        features[8] = x
        x = pool(x, 3, 2, 1)
        for name in ("fire6", "fire7", "fire8", "fire9"):
            x = self.fire(x, name)
        features[16] = self.functional.dropout(x, self.config.model.dropout, training=train)
        fused = self.convolution(features[16], "head.score16")
        for coarse, fine in ((16, 8), (8, 4), (4, 1)):
            factor = coarse // fine
            # Odd filters of 2·factor − 1, centred on pixels, and the last few rows of their reach.
            fused = self.functional.conv_transpose2d(
                fused,
                self.weights[f"head.upsample{coarse}.kernel"],
                stride=factor,
                padding=factor - 1,
                output_padding=factor - 1,
            )
            if fine > 1:
                fused = fused + self.convolution(features[fine], f"head.score{fine}")
        return fused

    def convolution(self, x: Any, name: str, *, stride: int = 1, padding: int = 0) -> Any:
        kernel, bias = self.weights[f"{name}.kernel"], self.weights[f"{name}.bias"]
        return self.functional.conv2d(x, kernel, bias, stride, padding)

    def convolution_relu(self, x: Any, name: str, *, stride: int = 1, padding: int = 0) -> Any:
        return self.functional.relu(self.convolution(x, name, stride=stride, padding=padding))

    def fire(self, x: Any, name: str) -> Any:
        x = self.convolution_relu(x, f"backbone.{name}.squeeze1x1")
        sides = [
            self.convolution_relu(x, f"backbone.{name}.expand1x1"),
            self.convolution_relu(x, f"backbone.{name}.expand3x3", padding=1),
        ]
        return self.torch.cat(sides, 1)


if __name__ == "__main__":
    flags.DEFINE_list("suites", list(SUITES), "which to run, of upsample, train_step")
    flags.DEFINE_enum("against", None, ["torch"], "also measure PyTorch")
    flags.DEFINE_integer("repeats", 9, "timed calls of each contender")
    flags.DEFINE_string("json", None, "file that the numbers are written to")
    flags.DEFINE_bool("small", False, "tiny sizes, to see that it runs; their times mean nothing")
    cli.run(main, sys.modules[__name__])
