"""Ross Wightman's image models (timm)."""

from fcn_jax.models.backbones.efficientnet import GROUPS
from fcn_jax.pretrained.source import WeightSource, batch_norms, kernels
from fcn_jax.pretrained.tables.torchvision import COUNTERS


def efficientnet_lite0() -> WeightSource:
    """Returns `efficientnet_lite0`, not `tf_efficientnet_lite0`, which pads like TensorFlow."""
    convolutions = {"backbone/conv1/conv": "conv_stem", "backbone/conv2/conv": "conv_head"}
    norms = {"backbone/conv1/bn": "bn1", "backbone/conv2/bn": "bn2"}
    for group, (count, _, _, expansion, _) in enumerate(GROUPS, start=1):
        parts = {"expand": "conv_pw", "depthwise": "conv_dw", "project": "conv_pwl"}
        if expansion == 1:
            parts = {"depthwise": "conv_dw", "project": "conv_pw"}
        for index in range(count):
            block, prefix = f"backbone/block{group}_{index}", f"blocks.{group - 1}.{index}"
            for number, (ours, theirs) in enumerate(parts.items(), start=1):
                convolutions[f"{block}/{ours}/conv"] = f"{prefix}.{theirs}"
                norms[f"{block}/{ours}/bn"] = f"{prefix}.bn{number}"
    return WeightSource(
        "EfficientNet-Lite0, timm",
        "efficientnet_lite0",
        "torchvision",
        has=("conv_stem.weight", "blocks.5.3.conv_pwl.weight", "conv_head.weight"),
        # EfficientNet-B0 has the first, Lite1 and larger ones have the second.
        lacks=("blocks.1.0.se.conv_reduce.weight", "blocks.1.2.conv_pwl.weight"),
        table=kernels(convolutions) | batch_norms(norms),
        ignored=("classifier.", COUNTERS),
        caveat="if this is tf_efficientnet_lite0, which has the same names, its scores differ: it "
        "needs TensorFlow's padding and another preprocessing",
    )
