"""Checks that other projects can run on their own backbones and losses.

backbone_check.py   `check_backbone`: positions, mixed sizes, tiles, receptive fields, remat
recording.py        runs a backbone and records the calls of its layers
report.py           the report of `check_backbone`

    from fcn_jax.testing import check_backbone

    print(check_backbone(MyBackbone))

`check_backbone` builds the backbone with random weights, runs it, and raises an error that names
the layer and what is wrong with it. On a CPU it takes seconds. `check_loss` checks that
the sums of a loss add up over sets of pixels and leave out pixels with label 255.
"""

from fcn_jax.testing.backbone_check import check_backbone
from fcn_jax.testing.report import BackboneReport, Layer
from fcn_jax.training.loss_check import check_loss

__all__ = ["BackboneReport", "Layer", "check_backbone", "check_loss"]
