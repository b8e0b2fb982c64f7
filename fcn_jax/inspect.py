"""Draws what a network computes on the way from an image to its classes.

    python -m fcn_jax.inspect --workdir=DIR IMAGE --output=OUT [--pixel=x,y]

DIR is the folder of a run, an exported folder, a model file, or published weights of a classifier
(.npz, .safetensors, .pth, .caffemodel), of which the layers alone are drawn. Writes

    OUT/index.html        a page with all pictures
    OUT/filters.png       the filters of the first layer
    OUT/layers/NN_*.png   the maps after each layer, activation and pooling: up to 64 channels
    OUT/skips.png         the scores of each skip alone, and what FCN-32s, 16s and 8s make of them;
                          not of a U-Net, which has none
    OUT/field.png         the receptive field of the pixel: the frame is what it may depend on, the
                          colours are what it does depend on (the gradient of its best score)

The pixel is the middle of the image by default. An image whose longer side exceeds 512 pixels is
shrunk. Extra channels are read from the folders next to the image's, as by predict.
"""

from absl import flags

from fcn_jax.terminal import cli

if __name__ == "__main__":  # --help and mistakes in flags do not wait for the imports below
    flags.DEFINE_string("workdir", None, "folder of the run, model file, or published weights")
    flags.DEFINE_string("output", None, "folder to write to")
    flags.DEFINE_string(
        "pixel", None, "x,y of the pixel whose field is drawn (default: the middle)"
    )
    cli.begin()

import functools
import re
from pathlib import Path

from PIL import Image

from fcn_jax.data.channels import read_with_channels
from fcn_jax.errors import ArgumentError, UserError
from fcn_jax.inference.inside import open_network
from fcn_jax.inference.inside_pictures import InsidePicture, inside_pictures, shrunk
from fcn_jax.pictures import html_page
from fcn_jax.terminal.atomic_files import write_text, write_whole
from fcn_jax.terminal.progress import say


def main(arguments: list[str]) -> None:
    options = flags.FLAGS
    if not options.workdir or not options.output or len(arguments) != 1:
        raise UserError("--workdir=DIR, --output=OUT and one IMAGE are needed (see --help)")
    opened = open_network(options.workdir)
    image = read_with_channels(Path(arguments[0]), opened.extra_channels)
    pixel = _pixel(options.pixel, image.shape[1], image.shape[0])
    small, pixel = shrunk(image, pixel)
    if small.shape != image.shape:
        say(f"shrunk to {small.shape[1]} × {small.shape[0]}")
    pictures = inside_pictures(opened, small, pixel)
    output = Path(options.output)
    for picture in pictures:
        name = re.sub(r"[^A-Za-z0-9_./-]+", "_", picture.name)
        drawn = Image.fromarray(picture.pixels)
        write_whole(output / f"{name}.png", functools.partial(_save, drawn))
    title = f"Inside {options.workdir}: {Path(arguments[0]).name}"
    page = html_page.page_html(title, [_heading(title, opened.description), *map(_part, pictures)])
    write_text(output / "index.html", page)
    say(f"{len(pictures)} pictures: {output}/index.html")


def _save(picture: Image.Image, path: Path) -> None:
    picture.save(path, format="PNG")


def _heading(title: str, description: str) -> str:
    heading = f"<h1>{html_page.text_html(title)}</h1>"
    return heading + html_page.paragraph_html(description, faint=True)


def _part(picture: InsidePicture) -> str:
    drawn = html_page.photo_html(picture.pixels, picture.title)
    return html_page.section_html(
        picture.title,
        html_page.paragraph_html(picture.caption, faint=True),
        f'<div class="plot">{drawn}</div>',
    )


def _pixel(text: str | None, width: int, height: int) -> tuple[int, int]:
    """Returns row and column of --pixel=x,y."""
    if text is None:
        return height // 2, width // 2
    match = re.fullmatch(r"(\d{1,6}),(\d{1,6})", text)
    if not match or int(match[1]) >= width or int(match[2]) >= height:
        raise ArgumentError("pixel", text, f"must be x,y within 0,0 and {width - 1},{height - 1}")
    return int(match[2]), int(match[1])


if __name__ == "__main__":
    cli.run(main)
