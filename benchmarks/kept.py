"""What a network keeps of an image from the forward for the backward pass.

It decides how large a batch can be, and needs no device: networks are traced, not run. What XLA or
torch.compile then make of it may be less.
"""

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.workloads import Workload
from fcn_jax.data.labels import IGNORE_INDEX
from fcn_jax.parallel.data_parallel import DATA_AXIS
from fcn_jax.training.losses import CrossEntropy


def kept_of_an_image(workload: Workload) -> int:
    """Bytes. The loss of the heads on a crop; parameters do not count."""
    return _kept(workload, 2) - _kept(workload, 1)


def _kept(workload: Workload, batch_size: int) -> int:
    network = workload.network()
    params, batch_stats = network.variables
    crop = (batch_size, *workload.crop_px)

    def losses(params: Any, batch_stats: Any, image: jax.Array, label: jax.Array) -> jax.Array:
        logits, _ = network.logits_in_blocks((params, batch_stats), image, train=True)
        loss = CrossEntropy()
        totals = [
            of_head.total(loss.sums, of_head.layout.dealt(label, IGNORE_INDEX))[0]
            for of_head in logits.values()
        ]
        return jnp.sum(jnp.stack(totals))

    def keep(params: Any, *inputs: Any) -> Any:
        return jax.vjp(lambda params: losses(params, *inputs), params)[1]

    traced = jax.make_jaxpr(keep, axis_env=[(DATA_AXIS, 1)])(
        params,
        batch_stats,
        jax.ShapeDtypeStruct((*crop, 3), jnp.float32),
        jax.ShapeDtypeStruct(crop, jnp.int32),
    )
    kept = {id(variable): variable.aval for variable in traced.jaxpr.outvars}
    return sum(aval.size * aval.dtype.itemsize for aval in kept.values())
