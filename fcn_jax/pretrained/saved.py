"""Our own file of weights: a .safetensors under our names, and a .json beside it that explains it.

The same two hold converted weights of other projects and exported runs of this one.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from fcn_jax.errors import UserError
from fcn_jax.terminal.atomic_files import write_whole

FORMAT = "fcn_jax"

SUFFIX = ".safetensors"

FILE = f"model{SUFFIX}"
"""Name of the file in the folder of an exported run."""


@dataclasses.dataclass(frozen=True)
class About:
    """What is known of weights beside their numbers.

    source: where they are from, for people. config: settings by section, of a run all of them, of
    weights from elsewhere those of `config.model` that make the network; `backbone` and
    `preprocessing` are always there. classes: the names of what a whole network predicts, by label
    map ('' where there is one); empty for a classifier's features. channels: of the images.
    step, metrics: of a run: when it was exported, and its scores by split.
    """

    source: str
    config: Mapping[str, Mapping[str, Any]]
    classes: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    channels: int = 3
    step: int = 0
    metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def backbone(self) -> str:
        """The `config.model.backbone` that they fit."""
        return self.config["model"]["backbone"]

    @property
    def preprocessing(self) -> str:
        """What they were trained on: a choice of `config.model.preprocessing`."""
        return self.config["model"]["preprocessing"]


def save(path: Path, tensors: Mapping[str, np.ndarray], about: About) -> None:
    """Writes `path`, a .safetensors, and the .json of the same name, each whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    text = json.dumps(dataclasses.asdict(about), indent=2, ensure_ascii=False) + "\n"
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    # The description within as well: the file explains itself where it is alone.
    metadata = {"format": FORMAT, FORMAT: text}
    write_whole(path, lambda part: save_file(contiguous, part, metadata=metadata))
    write_whole(path.with_suffix(".json"), lambda part: part.write_text(text, encoding="utf-8"))


def read_about(path: Path) -> About | None:
    """What a file of ours says of itself; None for a file of another kind.

    Raises:
        UserError: it says what this version of fcn_jax does not understand.
    """
    if path.suffix != SUFFIX:
        return None
    with safe_open(path, framework="numpy") as file:
        text = (file.metadata() or {}).get(FORMAT)
    if text is None:
        return None
    try:
        values = json.loads(text)
        values["classes"] = {name: tuple(names) for name, names in values["classes"].items()}
        return About(**values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} was written by another version of fcn_jax, which this one does not "
            f"understand ({error})"
        ) from error
