"""Tables on the terminal."""

import io
from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderableType, RenderHook
from rich.segment import Segment

from fcn_jax.errors import printable


def open_console() -> Console:
    """Returns a rich console on stdout that escapes control characters in what it prints."""
    console = Console(highlight=False)
    console.push_render_hook(_EscapeHook())
    return console


def rendered(table: RenderableType) -> str:
    """Returns the text of a table, without colours, with control characters escaped."""
    console = Console(file=io.StringIO(), highlight=False, color_system=None)
    console.push_render_hook(_EscapeHook())
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


class _EscapeHook(RenderHook):
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Escaped(renderable) for renderable in renderables]


class _Escaped:
    def __init__(self, renderable: RenderableType):
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in console.render(self._renderable, options):
            if segment.control or segment.text == "\n":
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)
