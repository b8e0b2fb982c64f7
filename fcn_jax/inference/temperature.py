"""The temperature of a trained network's probabilities, in a file of its run.

`python -m fcn_jax.evaluate --fit_temperature` writes the file, and whoever loads the run uses it.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from fcn_jax.errors import UserError
from fcn_jax.runs import evaluation_folder, others_tag
from fcn_jax.terminal.atomic_files import write_text


@dataclasses.dataclass(frozen=True)
class FittedTemperature:
    """Temperatures that were fitted on a split (Guo et al. 2017, section 4.2).

    Attributes:
        temperatures: by label map; probabilities are softmax(logits / temperature).
        fitted_on: the images, for people, such as "voc, split val, 1449 images".
        step: training step of the weights.
        weights: digest of the weights.
    """

    temperatures: Mapping[str, float]
    fitted_on: str
    step: int
    weights: str

    def __str__(self) -> str:
        values = ", ".join(
            f"{value:g} of {name}" if name else f"{value:g}"
            for name, value in self.temperatures.items()
        )
        return f"temperature {values}, fitted on {self.fitted_on}"

    def save(self, path: Path) -> None:
        """Writes a JSON file atomically.

        Raises:
            UserError: it cannot be written.
        """
        text = json.dumps(dataclasses.asdict(self), indent=2) + "\n"
        write_text(path, text)

    @classmethod
    def load(cls, path: Path) -> "FittedTemperature":
        """Reads a file that `save` wrote.

        Raises:
            UserError: it cannot be read, or holds something else.
        """
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            values = {str(name): float(x) for name, x in stored["temperatures"].items()}
            if not all(0 < value < float("inf") for value in values.values()):
                raise ValueError("a temperature is not above 0")
            return cls(
                values, str(stored["fitted_on"]), int(stored["step"]), str(stored["weights"])
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it holds no temperature"
            raise UserError(f"{path} cannot be read ({reason}): remove it, or fit again") from error


def temperature_path(workdirs: list[str]) -> Path:
    """Returns the file of the temperature of a run, or of an ensemble of several."""
    return evaluation_folder(Path(workdirs[0])) / f"temperature{others_tag(workdirs)}.json"
