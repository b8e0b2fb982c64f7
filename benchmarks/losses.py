"""Trains one network with each loss for the same few steps and prints how well and how fast.

    python -m benchmarks.losses --voc_root=VOCdevkit --init=squeezenet1_1.npz [--runs=runs/losses]
                                [--losses=NAME,NAME] [--seeds=0,1,2] [--steps=250] [--crop_px=192]

Each run is `python -m fcn_jax.train` with configs/voc_fcn8s_squeezenet.py and the settings in
`LOSSES`, in a folder of its own. A run whose folder is there is skipped, and the table is of all
finished runs, so that several processes can share the work; delete the folder of a run that failed.
CPU seconds and peak memory come from /proc: Linux only. They are those of the training steps; the
peak is that of the whole process, which also holds the images.

Short trainings rank early learning only.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from absl import flags

from fcn_jax.errors import UserError
from fcn_jax.terminal import cli
from fcn_jax.terminal.atomic_files import write_text

LOSSES: dict[str, dict[str, str]] = {
    "cross_entropy": {"names": "cross_entropy"},
    "label_smoothing": {"names": "cross_entropy", "options": "label_smoothing=0.1"},
    "focal": {"names": "focal"},
    "ohem": {"names": "ohem", "options": "min_kept={fifth}"},
    "topk": {"names": "topk"},
    "dice": {"names": "dice"},
    "dice_per_image": {"names": "dice", "options": "per_image=true"},
    "generalized_dice": {"names": "generalized_dice"},
    "tversky": {"names": "tversky"},
    "jaccard": {"names": "jaccard"},
    "lovasz": {"names": "lovasz"},
    "cross_entropy+dice": {"names": "cross_entropy,dice"},
    "cross_entropy+lovasz": {"names": "cross_entropy,lovasz"},
}
"""Settings `config.loss.*` by the loss's name in the table.

OHEM keeps at least a fifth of the pixels, as mmsegmentation's 100,000 are of a crop of 512×1024.
"""

if __name__ == "__main__":
    flags.DEFINE_string("voc_root", None, "folder of PASCAL VOC")
    flags.DEFINE_string("init", None, "SqueezeNet's weights")
    flags.DEFINE_string("runs", "runs/losses", "folder of the runs")
    flags.DEFINE_list("losses", list(LOSSES), f"some of {', '.join(LOSSES)}")
    flags.DEFINE_list("seeds", ["0"], "seeds; a run for each")
    flags.DEFINE_integer("steps", 250, "training steps of each run", lower_bound=30)
    flags.DEFINE_integer("crop_px", 192, "side of the crops", lower_bound=32)
    cli.begin()

CONFIG = Path(__file__).parents[1] / "configs/voc_fcn8s_squeezenet.py"
COST = "cost.json"
WARM_UP_STEPS = 20
POLL_EVERY_S = 0.1


def main(arguments: list[str]) -> None:
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r} (see --help)")
    options = flags.FLAGS
    for flag in ("voc_root", "init"):
        if not options[flag].value:
            raise UserError(f"--{flag} must be given (see --help)")
    for name in options.losses:
        if name not in LOSSES:
            raise UserError(f"--losses (={name!r}) must be among {', '.join(LOSSES)}")
    common = [
        f"--config={CONFIG}",
        f"--config.data.root={options.voc_root}",
        f"--config.init={options.init}",
        f"--config.train.steps={options.steps}",
        f"--config.train.eval_every_steps={options.steps}",
        f"--config.augment.crop_px={options.crop_px},{options.crop_px}",
    ]
    runs = Path(options.runs)
    for seed in options.seeds:
        for name in options.losses:
            workdir = runs / f"{name}-{seed}"
            if not workdir.exists():
                settings = [
                    f"--config.loss.{key}={value.format(fifth=options.crop_px**2 // 5)}"
                    for key, value in LOSSES[name].items()
                ]
                _train([*common, f"--config.seed={seed}", *settings], workdir, options.steps)
    print(table(runs))


def _train(settings: list[str], workdir: Path, steps: int) -> None:
    """Runs a training; writes its CPU seconds per step and its peak memory to its folder."""
    command = [sys.executable, "-m", "fcn_jax.train", f"--workdir={workdir}", *settings]
    used: dict[int, float] = {}
    peak_kib = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as training:
        while training.poll() is None:
            time.sleep(POLL_EVERY_S)
            step = _logged_step(workdir / "log.jsonl")
            if WARM_UP_STEPS <= step < steps and step not in used:
                used[step], peak_kib = _cpu_seconds(training.pid), _peak_kib(training.pid)
    if training.returncode or len(used) < 2:
        raise UserError(f"the training in {workdir} failed: delete it and start again")
    cost = {
        "cpu_seconds_per_step": (max(used.values()) - min(used.values())) / (max(used) - min(used)),
        "peak_bytes": peak_kib * 1024,
    }
    write_text(workdir / COST, json.dumps(cost) + "\n")


def _logged_step(log: Path) -> int:
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    entries = [json.loads(line) for line in lines if line.endswith("\n")]
    return max((entry["step"] for entry in entries if entry["kind"] == "train"), default=0)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _peak_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def table(runs: Path) -> str:
    """Returns a Markdown table of the finished runs in a folder, a row for each loss.

    Args:
        runs: folder of folders NAME-SEED.

    Returns:
        mIoU and pixel accuracy (mean over the seeds, with the smallest and largest if there are
        several), CPU seconds per step, and peak memory compared with cross-entropy's.
    """
    rows = ["| loss | mIoU | pixel accuracy | CPU s/step | peak memory |", "| --- |" + " --- |" * 4]
    base = 0.0
    for name in LOSSES:
        done = sorted(path.parent for path in runs.glob(f"{name}-[0-9]*/{COST}"))
        if not done:
            continue
        costs = [json.loads((run / COST).read_text()) for run in done]
        scores = [json.loads((run / "log.jsonl").read_text().splitlines()[-1]) for run in done]
        mib = statistics.median(cost["peak_bytes"] for cost in costs) / 2**20
        base = base or mib
        seconds = statistics.median(cost["cpu_seconds_per_step"] for cost in costs)
        rows.append(
            f"| {name} | {_percent([score['mean_iou'] for score in scores])} "
            f"| {_percent([score['pixel_accuracy'] for score in scores])} "
            f"| {seconds:.2f} | {mib:.0f} MiB ({mib - base:+.0f}) |"
        )
    return "\n".join(rows)


def _percent(values: list[float]) -> str:
    values = [100 * value for value in values]
    spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f} %{spread}"


if __name__ == "__main__":
    cli.run(main)
