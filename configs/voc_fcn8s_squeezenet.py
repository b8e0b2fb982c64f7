from fcn_jax.config import Config


def get_config() -> Config:
    config = Config()
    config.data.name = "voc"
    config.augment.crop_px = (320, 320)
    config.augment.scale = (0.5, 1.5)
    config.model.backbone = "squeezenet"
    config.model.skips = 2
    # ImageNet's features have sizes of about 12, 50 and 60 (root mean square): scored at about 1.
    config.model.score_scales = (0.1, 0.02, 0.02)
    config.model.upsampling = "fixed"
    config.optim.learning_rate = 2e-3
    config.optim.backbone_rate = 0.1
    config.optim.warmup_steps = 50
    config.train.batch_size = 8
    config.train.epochs = 24
    config.train.eval_every_steps = 437
    return config
