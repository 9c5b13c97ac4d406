"""Names beside the marks of a scatter plot, where they cover no other name and no mark."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from matplotlib import patheffects
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

__all__ = ["extent", "names", "overlap"]

_ANGLES = [math.radians(a) for a in (20, -20, 160, -160, 60, -60, 120, -120, 90, -90)]
_REACHES = (9, 20, 34, 50)  # points from a mark to its name


def names(fig: Figure, ax: Any, spots: Mapping[str, tuple[float, float]]) -> None:
    """Write each name beside its mark, where it covers no other name and no mark; a thin line leads to a far one."""
    fig.draw_without_rendering()
    fig.set_layout_engine("none")
    renderer, frame = fig.canvas.get_renderer(), ax.get_window_extent()
    pixels = ax.transData.transform(list(spots.values()))
    taken = [Bbox.from_bounds(x - 7, y - 7, 14, 14) for x, y in pixels]
    halo = [patheffects.withStroke(linewidth=2.5, foreground="white")]
    for k, (name, spot) in enumerate(spots.items()):
        others = [pixel for j, pixel in enumerate(pixels) if j != k]
        best, least = None, math.inf
        for reach in _REACHES:
            for angle in _ANGLES:
                there = (reach * math.cos(angle), reach * math.sin(angle))
                text = _name(ax, name, spot, there, reach)
                box = extent(text, renderer)
                cost = sum(overlap(box, other) for other in taken) + 4 * _outside(box, frame) + 3 * reach
                cost += 60 * sum(_away(box, other) < 14 for other in others) + (there[0] < 0)
                if cost < least:
                    best, least = (there, reach, box), cost
                text.remove()
        there, reach, box = best
        _name(ax, name, spot, there, reach).set_path_effects(halo)
        taken.append(box.padded(3))


def _name(ax: Any, name: str, spot: Any, there: tuple[float, float], reach: float) -> Any:
    side = "center" if abs(there[0]) < 1 else "left" if there[0] > 0 else "right"
    line = {"arrowstyle": "-", "color": "#777777", "lw": 0.6, "shrinkB": 4} if reach > _REACHES[0] else None
    options = {"textcoords": "offset points", "ha": side, "va": "center", "fontsize": 8.5, "arrowprops": line}
    text = ax.annotate(name, spot, there, annotation_clip=False, **options)
    text.set_in_layout(False)
    return text


def extent(text: Any, renderer: Any) -> Bbox:
    """The pixels of a name without the line that leads to it."""
    text.update_positions(renderer)
    return Text.get_window_extent(text, renderer)


def overlap(a: Bbox, b: Bbox) -> float:
    """Square pixels that two boxes share."""
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return width * height if width > 0 and height > 0 else 0.0


def _away(box: Bbox, spot: Any) -> float:
    """Pixels from a box to a point."""
    x, y = max(box.x0 - spot[0], spot[0] - box.x1, 0), max(box.y0 - spot[1], spot[1] - box.y1, 0)
    return math.hypot(x, y)


def _outside(box: Bbox, frame: Bbox) -> float:
    return box.width * box.height - overlap(box, frame)
