"""The report of `check_backbone`."""

import dataclasses
from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Layer:
    """A module that a backbone calls.

    Attributes:
        name: the attribute of the backbone.
        kind: its class.
        output: (h, w, c) on an image of 64×64 pixels; likewise for other numbers of axes.
        compile_seconds: the time to compile it by itself for inference.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    compile_seconds: float


@dataclasses.dataclass(frozen=True)
class BackboneReport:
    """The result of `check_backbone`. Printed, it is a table.

    Attributes:
        backbone: the class of the backbone.
        checks: what was checked -> what was found.
        layers: the layers in the order of their calls, if compile times were wanted.
    """

    backbone: str
    checks: Mapping[str, str]
    layers: Sequence[Layer] = ()

    def __str__(self) -> str:
        lines = [self.backbone, *_table(list(self.checks.items()))]
        if self.layers:
            rows = [("layer", "class", "output", "compiled in")]
            for layer in self.layers:
                output = "×".join(map(str, layer.output))
                rows.append((layer.name, layer.kind, output, f"{layer.compile_seconds:.2f} s"))
            lines += ["", *_table(rows)]
        return "\n".join(lines)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
