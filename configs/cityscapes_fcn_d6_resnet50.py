"""mmsegmentation's FCN-D6: ResNet-50-C of stride 16 whose head is dilated by 6, on Cityscapes.

    python -m fcn_jax.train --config=configs/cityscapes_fcn_d6_resnet50.py \\
        --config.data.root=cityscapes --workdir=runs/cityscapes_fcn_d6

`cityscapes` is a folder with images/, masks/ of trainIds (255 for classes that are not evaluated)
and the lists train.txt and val.txt. `--config.init=fcn_d6_r50-d16.safetensors`
starts from mmsegmentation's weights.

Recipe of fcn-d6_r50-d16_4xb2-40k_cityscapes-512x1024: SGD, momentum 0.9, weight decay 5e-4, poly
0.9 from a rate of 0.01, 8 images a step, 40,000 steps; crops of 512×1024 from images scaled by 0.5
to 2; an auxiliary head with the weight 0.4. Unlike there, the rate ends at 0 instead of 1e-4 and
the colours are changed by brightness, contrast and saturation, not hue.

Hardware: meant for a large GPU. mmsegmentation reports 77.06 mIoU on Cityscapes val, where its
FCN-D8 has 72.25, at 10.22 instead of 4.17 images a second; not measured here.
"""

from fcn_jax.config import Config


def get_config() -> Config:
    config = Config()
    config.data.name = "folder"
    config.augment.crop_px = (512, 1024)
    config.augment.scale = (0.5, 2.0)
    config.augment.brightness = 0.125
    config.augment.contrast = 0.5
    config.augment.saturation = 0.5
    config.model.backbone = "resnet50c"
    config.model.output_stride = 16
    config.model.skips = 0
    config.model.head = "mmseg"
    config.model.head_dilation = 6
    config.model.auxiliary_weight = 0.4
    config.model.upsampling = "interpolate"
    config.model.dropout = 0.1
    config.optim.name = "sgd"
    config.optim.learning_rate = 0.01
    config.optim.weight_decay = 5e-4
    config.train.batch_size = 8
    config.train.steps = 40_000
    return config
