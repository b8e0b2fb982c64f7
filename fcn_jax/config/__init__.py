"""The settings of a run, as dataclasses that check themselves.

sections.py   every setting
files.py      config files, the command line, stored runs and models
fields.py     the machinery: types, ranges and help lines of settings

A config file returns a `Config` from `get_config()`; the command line changes single settings with
`--config.section.key=value`. `python -m fcn_jax.train --help` lists them all.
"""

from fcn_jax.config.fields import check_ranges, settings
from fcn_jax.config.files import from_dict, import_code, load, override
from fcn_jax.config.sections import (
    RESERVED_FOLDERS,
    AugmentConfig,
    Config,
    DataConfig,
    EvalConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    VolumesConfig,
    default_config,
)

__all__ = [
    "RESERVED_FOLDERS",
    "AugmentConfig",
    "Config",
    "DataConfig",
    "EvalConfig",
    "LossConfig",
    "ModelConfig",
    "OptimConfig",
    "TrainConfig",
    "VolumesConfig",
    "check_ranges",
    "default_config",
    "from_dict",
    "import_code",
    "load",
    "override",
    "settings",
]
