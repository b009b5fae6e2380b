"""The figures of a report, curves by depth, drawings of blocks, heat maps: numbers come in, figures go out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import drawing
from .blocks import Block
from .drawing import BACK, CONVERTED, FAINT, HADAMARD, IDENTITY, INK, LINE, ORIGINAL, OTHER, ZERO
from .layout import layout

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

Curve = Sequence[tuple[float, float]]  # (depth, value)

_WIDTH, _HEIGHT = 3.6, 2.6
_MARKS = {"zero": ZERO, "identity": IDENTITY, "hadamard": HADAMARD, "other": OTHER, "plain": LINE}
_BOX, _LANE, _PITCH, _TALL = 2.0, 0.3, 0.6, 0.42  # inches: widths of columns, distance of ranks, height of a box
_LETTERS = 30  # that fit into a box


def curve(curves: Mapping[str, Curve], label: str, *, logarithmic: bool) -> Figure:
    """One quantity by depth, for "original" and "converted". On a logarithmic scale 0 is a mark at the bottom."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    made = drawing.figure(_WIDTH, _HEIGHT)
    one = drawing.axes(made, top=0.42)
    curves = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in curves.items()}
    values = [value for points in curves.values() for _, value in points if value > 0]
    floor = min(values, default=1.0) / 3
    if logarithmic:
        one.set_yscale("log")
    styles: dict[str, dict[str, Any]] = {
        "original": {"color": ORIGINAL, "marker": "o", "markersize": 2.6, "linewidth": 1.1, "linestyle": (0, (4, 2))},
        "converted": {"color": CONVERTED, "marker": "o", "markersize": 3, "linewidth": 1.6},
    }
    for name, points in curves.items():
        shown = [(x, y) for x, y in points if y > 0 or not logarithmic]
        one.plot([x for x, _ in shown], [y for _, y in shown], label=name, **styles[name])
        zeros = [x for x, y in points if y == 0] if logarithmic else []
        if zeros:
            one.plot(
                zeros, [floor] * len(zeros), linestyle="none", marker="v", markersize=4, color=styles[name]["color"],
                markerfacecolor=BACK, label=f"{name}: exactly 0", clip_on=False,
            )  # fmt: skip
    if not logarithmic:
        one.set_ylim(-4, 104)
    elif values:
        one.set_ylim(floor * 0.8, max(values) * 2)
    one.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    one.set_xlabel("weight layers passed", color=FAINT, fontsize=8)
    one.set_ylabel(label, color=INK, fontsize=8.5)
    if logarithmic:
        few = bool(values) and max(values) / floor < 100
        one.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=7))
        one.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        one.yaxis.set_minor_formatter(NullFormatter())
    above = {"loc": "lower right", "bbox_to_anchor": (1, 1), "borderaxespad": 0.2, "ncols": 2}  # hides no curve there
    one.legend(fontsize=7, frameon=False, labelcolor=INK, **above)
    return made


def block(one: Block) -> Figure:
    """A block from its fork, above, to its join."""
    from matplotlib.patches import Circle, FancyBboxPatch

    placed = layout(one)
    lefts = [0.1]
    for boxed in placed.boxed:
        lefts.append(lefts[-1] + (_BOX + 0.12 if boxed else _LANE))
    width, height = lefts[-1] + 0.1, placed.ranks * _PITCH + 0.1
    made = drawing.figure(width, height)
    axes: Any = made.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.axis("off")
    first = next(index for index, boxed in enumerate(placed.boxed) if boxed)

    def centre(column: int) -> float:
        return lefts[column] + (_BOX / 2 if placed.boxed[column] else _LANE / 2) + (0 if column == first else 0.02)

    def middle(rank: int) -> float:
        return 0.05 + _PITCH * (rank + 0.5)

    for source, target, lane in placed.edges:
        (top, start), (bottom, end) = placed.places[source], placed.places[target]
        ways = [(centre(start), middle(top) + _half(one[source].label))]
        if lane is not None:
            ways += [(centre(lane), middle(top + 1) - _PITCH / 2), (centre(lane), middle(bottom - 1) + _PITCH / 2)]
        ways.append((centre(end), middle(bottom) - _half(one[target].label)))
        axes.add_patch(_way(ways))
    for box, (rank, column) in zip(one, placed.places, strict=True):
        x, y = centre(column), middle(rank)
        mark = box.mark
        if _is_sign(box.label):
            axes.add_patch(Circle((x, y), 0.13, facecolor=BACK, edgecolor=INK, linewidth=1.2, zorder=3))
            axes.text(x, y, box.label, ha="center", va="center", color=INK, fontsize=11, zorder=4)
            continue
        if box.kind == "fork":
            axes.text(x, y, _short(box.label), ha="center", va="center", color=FAINT, fontsize=8, zorder=4)
            continue
        plain = mark == "plain"
        axes.add_patch(
            FancyBboxPatch(
                (x - _BOX / 2 + 0.05, y - _TALL / 2),
                _BOX - 0.1,
                _TALL,
                boxstyle="round,pad=0,rounding_size=0.07",
                facecolor=BACK,
                edgecolor=_MARKS[mark],
                linewidth=1 if plain else 1.7,
                linestyle=(0, (3, 2)) if mark == "zero" else "solid",
                zorder=3,
            )
        )
        shift = 0 if plain else 0.09
        words: dict[str, Any] = {"ha": "center", "va": "center", "zorder": 4}
        axes.text(x, y - shift, _short(box.label), color=INK, fontsize=8, **words)
        if not plain:
            axes.text(x, y + shift, _short(box.rule), color=_MARKS[mark], fontsize=7.2, **words)
    return made


def heat(matrix: NDArray[np.float32]) -> Figure:
    """A matrix, rows downwards: negative blue, zero pale, positive orange."""
    from matplotlib.colors import LinearSegmentedColormap

    rows, columns = matrix.shape
    scale = 2.3 / max(rows, columns)
    made = drawing.figure(max(1.3, columns * scale) + 0.65, max(0.35, rows * scale) + 0.55)
    one = drawing.axes(made, left=0.45, bottom=0.4, right=0.2, top=0.15)
    one.grid(False)
    most = float(abs(matrix).max()) or 1.0
    map_ = LinearSegmentedColormap.from_list("signed", ["#2166ac", "#e9e9ec", "#d9730d"])
    shown = one.imshow(matrix, cmap=map_, vmin=-most, vmax=most, aspect="auto", interpolation="none")
    shown.set_rasterized(False)
    one.set_xlabel("input", color=FAINT, fontsize=8)
    one.set_ylabel("output", color=FAINT, fontsize=8)
    from matplotlib.ticker import MaxNLocator

    for axis, count in ((one.xaxis, columns), (one.yaxis, rows)):
        axis.set_major_locator(MaxNLocator(nbins=4 if count > 4 else max(1, count), integer=True))
    one.set_xlim(-0.5, columns - 0.5)
    one.set_ylim(rows - 0.5, -0.5)
    return made


def _way(points: Sequence[tuple[float, float]]) -> Any:
    """A line through the points that leaves and arrives upright."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    vertices, codes = [points[0]], [Path.MOVETO]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        bend = abs(y1 - y0) * 0.6 if x0 != x1 else 0
        vertices += [(x0, y0 + bend), (x1, y1 - bend), (x1, y1)]
        codes += [Path.CURVE4] * 3
    return PathPatch(Path(vertices, codes), facecolor="none", edgecolor=FAINT, linewidth=1.1, zorder=1)


def _is_sign(label: str) -> bool:
    return label in ("+", "×")


def _half(label: str) -> float:
    return 0.13 if _is_sign(label) else _TALL / 2


def _short(text: str) -> str:
    return text if len(text) <= _LETTERS else f"{text[: _LETTERS - 1]}…"
