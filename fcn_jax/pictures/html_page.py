"""HTML pages in one file: text, tables that sort, and pictures inside; nothing is loaded.

Functions whose name ends in `_html` return HTML. All other text is escaped here, because names of
classes, images and folders come from strangers.
"""

import base64
import html
import io
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from fcn_jax.errors import printable

JPEG_QUALITY = 85

STYLE = """
:root{--paper:#f6f7f9;--panel:#fff;--ink:#15181e;--faint:#59616e;--line:#d9dde4;--accent:#1d4ed8;
color-scheme:light dark}
@media (prefers-color-scheme:dark){:root{--paper:#111418;--panel:#1a1e24;--ink:#e9ecf1;
--faint:#a2abb8;--line:#323944;--accent:#7aa5ff}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:76rem;padding:1.2rem;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
h1{font-size:1.5rem;margin:0 0 .2rem;overflow-wrap:anywhere}h2{font-size:1.1rem;margin:0 0 .6rem}
section{background:var(--panel);border:1px solid var(--line);border-radius:12px;padding:1rem 1.2rem;
margin:1rem 0}
p{margin:.3rem 0}.faint,figcaption{color:var(--faint);font-size:.9rem}
.numbers{display:flex;flex-wrap:wrap;gap:.6rem 2rem;margin:.8rem 0}
.numbers b{display:block;font-size:1.5rem;line-height:1.2;font-variant-numeric:tabular-nums}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.92rem}
th,td{padding:.3rem .6rem;text-align:right;border-bottom:1px solid var(--line);
font-variant-numeric:tabular-nums;white-space:nowrap}
th:first-child,td:first-child{text-align:left;white-space:normal;overflow-wrap:anywhere;
min-width:8rem}
th button{all:unset;cursor:pointer;font-weight:600;border-bottom:1px dotted}
th button:focus-visible{outline:3px solid var(--accent)}
th[aria-sort=ascending] button::after{content:" ▲"}
th[aria-sort=descending] button::after{content:" ▼"}
pre{overflow-x:auto;background:var(--paper);border:1px solid var(--line);border-radius:8px;
padding:.7rem;font-size:.85rem;white-space:pre-wrap;overflow-wrap:anywhere}
figure{margin:.4rem 0}.plot{background:#fff;border-radius:8px;padding:.4rem;overflow-x:auto}
.plot svg,.plot img{max-width:100%;height:auto;display:block;margin:auto}
.row{display:grid;grid-template-columns:repeat(4,minmax(0,1fr));gap:.5rem}
.row img,.pair img{width:100%;height:auto;display:block;border-radius:4px}
@media (max-width:640px){.row{grid-template-columns:repeat(2,minmax(0,1fr))}body{padding:.7rem}}
.swatch{display:inline-block;width:.8em;height:.8em;border-radius:3px;border:1px solid #8886;
margin-right:.4em;vertical-align:-.05em}
.pairs{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,20rem),1fr));gap:1rem}
.pair .both{position:relative}.pair .both img+img{position:absolute;inset:0;
clip-path:inset(0 0 0 calc(var(--at)*1%))}
.pair .both::after{content:"";position:absolute;top:0;bottom:0;left:calc(var(--at)*1%);width:2px;
background:#fff;box-shadow:0 0 2px #000}
.pair input{width:100%;accent-color:var(--accent)}
"""

SCRIPT = """
for(const button of document.querySelectorAll("th button"))button.onclick=()=>{
const th=button.parentElement,table=th.closest("table"),body=table.tBodies[0],at=th.cellIndex,
up=th.getAttribute("aria-sort")==="descending";
for(const other of th.parentElement.cells)other.removeAttribute("aria-sort");
th.setAttribute("aria-sort",up?"ascending":"descending");
const value=(row)=>row.cells[at].dataset.value;
const rows=[...body.rows].sort((a,b)=>{const x=value(a),y=value(b);
if(x===undefined||y===undefined)return(x===undefined)-(y===undefined);
const d=isNaN(x)||isNaN(y)?x.localeCompare(y):x-y;return up?d:-d});
body.append(...rows)};
for(const slider of document.querySelectorAll(".pair input"))
slider.oninput=()=>slider.closest(".pair").style.setProperty("--at",slider.value);
"""


class Cell(NamedTuple):
    """A cell of a table: what it shows, and the number that it is sorted by, if it has one."""

    text: str
    value: float | None = None
    colour: tuple[int, int, int] | None = None


def text_html(text: str) -> str:
    """Escapes text."""
    return html.escape(printable(text))


def page_html(title: str, parts: Iterable[str]) -> str:
    """Returns a whole page of these parts, which are HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text_html(title)}</title><style>{STYLE}</style></head><body>\n"
        + "\n".join(parts)
        + f"\n<script>{SCRIPT}</script></body></html>\n"
    )


def section_html(title: str, *parts: str) -> str:
    """Returns a section with a heading; the parts are HTML."""
    return f"<section><h2>{text_html(title)}</h2>{''.join(parts)}</section>"


def paragraph_html(text: str, *, faint: bool = False) -> str:
    return f"<p{' class=faint' if faint else ''}>{text_html(text)}</p>"


def numbers_html(numbers: Iterable[tuple[str, str]]) -> str:
    """Returns large numbers with their names below: (number, name) of each."""
    items = (f"<div><b>{text_html(n)}</b>{text_html(name)}</div>" for n, name in numbers)
    return f'<div class="numbers">{"".join(items)}</div>'


def list_html(items: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{text_html(item)}</li>' for item in items)}</ul>"


def code_html(text: str) -> str:
    lines = "\n".join(text_html(line) for line in text.splitlines())
    return f"<pre>{lines}</pre>"


def table_html(heads: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """Returns a table that is sorted by a column when its head is pressed."""
    head = "".join(
        f'<th scope="col"><button type="button">{text_html(h)}</button></th>' for h in heads
    )
    body = "".join(f"<tr>{''.join(map(_cell_html, row))}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def figure_html(content: str, caption: str) -> str:
    """Returns HTML with a caption."""
    return f"<figure>{content}<figcaption>{text_html(caption)}</figcaption></figure>"


def slider_html(below: np.ndarray, above: np.ndarray, description: str) -> str:
    """Returns two pictures of one size, uint8 (h, w, 3), and a slider between them."""
    both = photo_html(below, f"A: {description}") + photo_html(above, f"B: {description}")
    return (
        f'<div class="pair" style="--at:50"><div class="both">{both}</div>'
        '<input type="range" min="0" max="100" value="50" aria-label="border between A, on the '
        'left, and B, on the right"></div>'
    )


def _cell_html(cell: Cell) -> str:
    key = cell.text if cell.value is None else f"{cell.value:.6g}"
    has_value = cell.value is None or not math.isnan(cell.value)
    attribute = f' data-value="{text_html(key)}"' if has_value else ""
    swatch = ""
    if cell.colour is not None:
        red, green, blue = cell.colour
        swatch = f'<span class="swatch" style="background:rgb({red},{green},{blue})"></span>'
    return f"<td{attribute}>{swatch}{text_html(cell.text)}</td>"


def photo_html(picture: np.ndarray | Image.Image, description: str) -> str:
    """Returns a picture as JPEG: for photos, and what is drawn over them."""
    return _image_html(_encoded(picture, "JPEG", quality=JPEG_QUALITY), "jpeg", description)


def drawing_html(picture: np.ndarray | Image.Image, description: str) -> str:
    """Returns a picture of at most 256 colours as PNG: for label maps."""
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    few = picture.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    if picture.convert("RGB").getcolors(256) is None:
        few = picture
    return _image_html(_encoded(few, "PNG", optimize=True), "png", description)


def png_html(data: bytes, description: str) -> str:
    """Returns the bytes of a PNG file as a picture."""
    return _image_html(data, "png", description)


def _image_html(data: bytes, kind: str, description: str) -> str:
    encoded = base64.b64encode(data).decode("ascii")
    return f'<img alt="{text_html(description)}" src="data:image/{kind};base64,{encoded}">'


def _encoded(picture: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()
