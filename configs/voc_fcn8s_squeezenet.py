from fcn_jax.config import Config


def get_config() -> Config:
    config = Config()
    config.data.name = "voc"
    config.augment.crop_px = (320, 320)
    config.augment.scale = (0.5, 1.5)
    config.model.backbone = "squeezenet"
    config.model.skips = 2
    config.optim.learning_rate = 2e-3
    config.optim.backbone_rate = 0.1
    config.train.batch_size = 8
    config.train.epochs = 24
    return config
