"""Measures the speed and memory of fcn_jax: `python -m benchmarks`.

measuring.py       cases, contenders and rows; how they are measured
workloads.py       the networks and their training
settings.py        the options of the command line
suite_*.py         a suite each
torch_*.py         PyTorch doing the same: networks, training step, evaluation, contenders
torchvision_import.py
                   torchvision beside a PyTorch for CPUs alone
cost.py            operations of a program, peaks of devices, and the machine's own rates
hardware.py        the machine and the versions
report.py          the tables
losses.py          a program of its own: short trainings with each loss, and their table
load_serve.py      another one: many images at once to the server
on_gpu.sh          everything that needs a GPU, within 20 minutes
"""

SUITES = (
    "startup",
    "memory",
    "upsample",
    "volumes",
    "scaling",
    "train_step",
    "members",
    "input",
    "evaluate",
)
"""Those that start processes, which need the device's memory, come first."""
