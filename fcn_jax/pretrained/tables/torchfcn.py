"""The FCNs of `torchfcn` (Kentaro Wada), often converted from the authors' Caffe models.

FCN-8s at once has the same names as FCN-8s, but scales pool4 and pool3, so it needs
`config.model.score_scales=1,0.01,0.0001`.
"""

from fcn_jax.data.voc import VOC_CLASSES
from fcn_jax.models.backbones.vgg import BLOCKS
from fcn_jax.pretrained.source import WeightSource, from_iohw, from_oihw, kernels_and_biases

VGG16_LAYERS = (
    *(
        f"conv{block}_{n}"
        for block, (_, depth) in enumerate(BLOCKS, 1)
        for n in range(1, depth + 1)
    ),
    "fc6",
    "fc7",
)

SKIP_LAYERS = {
    "FCN-32s": ({"score32": "score_fr"}, {"upsample32": "upscore"}),
    "FCN-16s": (
        {"score32": "score_fr", "score16": "score_pool4"},
        {"upsample32": "upscore2", "upsample16": "upscore16"},
    ),
    "FCN-8s": (
        {"score32": "score_fr", "score16": "score_pool4", "score8": "score_pool3"},
        {"upsample32": "upscore2", "upsample16": "upscore_pool4", "upsample8": "upscore8"},
    ),
}
"""Network -> (our score layers -> the authors', our upsampling layers -> the authors')."""

PAPER_MODEL = {"padding": "paper", "upsampling": "learned"}
"""Settings of the authors' networks. "learned" keeps the file's filters, also bilinear ones."""

AT_ONCE = "if this is FCN8sAtOnce, which has the same names, it needs score_scales=1,0.01,0.0001"


def torchfcn(net: str) -> WeightSource:
    scores, upsamplings = SKIP_LAYERS[net]
    table = kernels_and_biases(
        {f"backbone/{name}": name for name in VGG16_LAYERS}, layout=from_oihw
    )
    table |= kernels_and_biases({f"head/{ours}": theirs for ours, theirs in scores.items()})
    for ours, theirs in upsamplings.items():
        table[f"head/{ours}/kernel"] = (f"{theirs}.weight", from_iohw)
    last = list(upsamplings.values())[-1]
    return WeightSource(
        f"{net} on VGG16, torchfcn",
        "vgg16",
        "caffe",
        has=("conv1_1.weight", "score_fr.weight", f"{last}.weight"),
        table=table,
        model=PAPER_MODEL | {"skips": len(scores) - 1},
        label_maps={"": VOC_CLASSES},
        caveat=AT_ONCE if net == "FCN-8s" else "",
    )
