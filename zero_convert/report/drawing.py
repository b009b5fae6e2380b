"""Figures of matplotlib as inline SVG that follows the page's colours, and as PNG.

The same figure gives the same bytes. The only file that knows matplotlib. No text of a model becomes mathematics or
markup here: matplotlib draws it as outlines, letter by letter.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from zero_convert.runtime.messages import without_warnings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colours that stand for a variable of the page's style sheet in SVG → the same in PNG.
INK, FAINT, LINE, BACK = "#010101", "#010102", "#010103", "#010104"
ORIGINAL, CONVERTED, ZERO, IDENTITY, HADAMARD, OTHER = (f"#0102{n:02x}" for n in range(1, 7))
_NAMES = {
    INK: ("ink", "#1b1f24"),
    FAINT: ("faint", "#5c6570"),
    LINE: ("line", "#d5dae0"),
    BACK: ("back", "#ffffff"),
    ORIGINAL: ("original", "#5b7083"),
    CONVERTED: ("converted", "#c2410c"),
    ZERO: ("zero", "#8a6100"),
    IDENTITY: ("identity", "#1d63b8"),
    HADAMARD: ("hadamard", "#7a3fb3"),
    OTHER: ("other", "#2c7a4b"),
}
_SETTINGS: Any = {
    "svg.fonttype": "path",
    "svg.hashsalt": "zero-convert",
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "text.parse_math": False,
    "text.usetex": False,
    "axes.unicode_minus": True,
    "axes.formatter.use_locale": False,
    "figure.dpi": 100,
    "path.simplify": True,
    "image.interpolation": "none",
}
_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}
DPI = 160  # of the PNG


@contextmanager
def settings() -> Iterator[None]:
    """Inside: our own settings, whatever the user's file of matplotlib says; a figure is made and drawn there."""
    import matplotlib

    with without_warnings(), matplotlib.rc_context():  # a letter that the font lacks is drawn as a box
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches, without a window and without anything global."""
    from matplotlib.figure import Figure as Made

    return Made(figsize=(width, height))


def axes(made: Figure, *, left: float = 0.78, bottom: float = 0.46, right: float = 0.1, top: float = 0.1) -> Any:
    """Axes with margins in inches, with quiet frames."""
    width, height = made.get_size_inches()
    frame = (left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height)
    one = made.add_axes(frame)
    one.patch.set_alpha(0)
    for side in ("top", "right"):
        one.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        one.spines[side].set_color(LINE)
    one.tick_params(colors=FAINT, labelsize=8, length=3, which="both")
    one.grid(True, color=LINE, linewidth=0.6, alpha=0.7)
    one.set_axisbelow(True)
    return one


def svg(made: Figure, name: str, title: str) -> str:
    """The figure as one `<svg>` element whose colours are the page's.

    Args:
        name: unique on the page; in front of every id in the element.
        title: what a reader hears who does not see it.
    """
    made.patch.set_alpha(0)
    stream = io.StringIO()
    made.savefig(stream, format="svg", metadata=_METADATA)
    text = stream.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)  # says again what is drawn
    text = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    for colour, (variable, _) in _NAMES.items():
        text = text.replace(colour, f"var(--{variable})")
    text = re.sub(r'(<svg[^>]*?) width="([\d.]+)pt" height="[\d.]+pt"', r'\1 style="width: \2pt"', text, count=1)
    text = re.sub(r"\n\s*", "\n", text)
    start, end = text.split(">", 1)
    return f'{start} role="img" aria-label="{escape(title, {chr(34): "&quot;"})}">{end}'


def png(made: Figure) -> bytes:
    """The figure as a picture on white."""
    _recolour(made)
    made.patch.set_alpha(1)
    made.patch.set_facecolor("#ffffff")
    stream = io.BytesIO()
    made.savefig(stream, format="png", dpi=DPI, metadata={"Software": None})
    return stream.getvalue()


def _recolour(made: Figure) -> None:
    """Real colours instead of those that stand for a variable."""
    from matplotlib.colors import to_hex

    for artist in made.findobj():
        for part in ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor"):
            read, write = getattr(artist, f"get_{part}", None), getattr(artist, f"set_{part}", None)
            if read is None or write is None:
                continue
            value = read()
            if isinstance(value, str) or (isinstance(value, tuple) and len(value) in (3, 4)):
                colour = to_hex(value, keep_alpha=False) if value != "none" else ""
                if colour in _NAMES and not (isinstance(value, tuple) and len(value) == 4 and value[3] == 0):
                    write(_NAMES[colour][1])
