"""TPUs that are not there: their published figures, and their devices to compile programs for."""

import dataclasses
import importlib.util
import os
import re
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from fcn_jax.errors import ArgumentError, UserError
from fcn_jax.parallel.data_parallel import DATA_AXIS


@dataclasses.dataclass(frozen=True)
class TpuChip:
    """The published figures of a chip.

    Attributes:
        name: as in a topology, such as "v5e".
        flops: peak of dense bfloat16 products, operations per second. XLA also uses bfloat16
            products for float32 by default.
        hbm_bandwidth: bytes per second.
        hbm_bytes: what XLA lets a program use; less than the chip has.
        ici_bandwidth: bytes per second that a chip sends to its neighbours, all links together.
    """

    name: str
    flops: float
    hbm_bandwidth: float
    hbm_bytes: float
    ici_bandwidth: float


# Google Cloud's pages "TPU v5e", "TPU v5p" and "TPU v6e", read in November 2026; there the
# interconnect has 1600, 4800 and 3584 Gbit/s. The memory is the limit in the message with which
# libtpu 0.0.42 refuses a program that is too large.
CHIPS = MappingProxyType(
    {
        chip.name: chip
        for chip in (
            TpuChip("v5e", 197e12, 819e9, 15.75 * 2**30, 200e9),
            TpuChip("v5p", 459e12, 2765e9, 95.74 * 2**30, 600e9),
            TpuChip("v6e", 918e12, 1640e9, 31.25 * 2**30, 448e9),
        )
    }
)


def topology_mesh(topology: str) -> tuple[TpuChip, Mesh]:
    """Returns the chip of a topology, and all its devices as a mesh over `DATA_AXIS`.

    Args:
        topology: the chip and its arrangement, such as "v5e:2x4" or "v5p:2x2x1".

    Raises:
        ArgumentError: there is no such chip or arrangement.
        UserError: libtpu, whose compiler is needed, is not installed or does not start.
    """
    name, _, arrangement = topology.partition(":")
    if name not in CHIPS or not re.fullmatch(r"\d{1,3}(x\d{1,3}){1,2}", arrangement):
        known = ", ".join(CHIPS)
        raise ArgumentError(
            "topology", topology, f"must be CHIP:AxB, such as v5e:2x4, with a chip of {known}"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("the TPU's compiler is not installed: pip install -e '.[compile]'")
    for variable, value in {
        "TPU_SKIP_MDS_QUERY": "1",  # asks no metadata server, which only TPU hosts have
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # any, so that libtpu does not look for one
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several processes compile at once
        "TPU_MIN_LOG_LEVEL": "3",
    }.items():
        os.environ.setdefault(variable, value)
    try:
        description: Any = topologies.get_topology_desc(topology, platform="tpu")
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        if "INVALID_ARGUMENT" in reason:
            raise ArgumentError("topology", topology, f"cannot be used: {reason}") from error
        raise UserError(f"libtpu does not start: {reason}") from error
    return CHIPS[name], Mesh(np.asarray(description.devices), (DATA_AXIS,))
