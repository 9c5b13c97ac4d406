"""Pictures of whole tables, for notebook 09: trade-offs, places, odds, verdicts, claims beside what they are compared with, a run in time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, NullLocator

from cfx_lib.bench.verdicts import INCONCLUSIVE, NEEDS_GPU, NOT_REPRODUCED, REPRODUCED, VERDICTS
from cfx_lib.learn import labels, plots
from cfx_lib.learn.plots import Picture, _axes, _styled
from cfx_lib.metrics import Value

__all__ = [
    "brief",
    "decision",
    "drawable",
    "forest",
    "heat",
    "placed",
    "timeline",
    "tradeoff",
    "verdict_bars",
]

COLOURS = {
    REPRODUCED: plots.GREEN,
    NOT_REPRODUCED: plots.VERMILION,
    INCONCLUSIVE: plots.YELLOW,
    NEEDS_GPU: "#bbbbbb",
}
MARKS = {REPRODUCED: "o", NOT_REPRODUCED: "X", INCONCLUSIVE: "s", NEEDS_GPU: "o"}
_SHARES = ("%", "points")  # units that are stored as shares and shown times 100


def shown(value: Value | float) -> tuple[float, float, float]:
    """Mean, low and high as they are shown: a share times 100; without an interval both ends are the mean."""
    factor = 100.0 if isinstance(value, Value) and value.unit in _SHARES else 1.0
    return tuple(factor * v for v in plots._mean_low_high(value))


def placed(values: Sequence[float | None], better: str) -> list[float | None]:
    """The place of each value, 1 for the best ("higher" or "lower" is better); equal ones share the mean of theirs; None stays None."""
    if better not in ("higher", "lower"):
        raise ValueError(f"better = {better!r}; expected 'higher' or 'lower'.")
    sign = 1.0 if better == "higher" else -1.0
    there = [sign * v for v in values if v is not None]
    places = [
        None if v is None else sum(t > sign * v for t in there) + (there.count(sign * v) + 1) / 2
        for v in values
    ]
    return places


# ---------------------------------------------------------------------------------------------------- trade-offs


@_styled
def tradeoff(
    points: Mapping[str, tuple[Value, Value]],
    *,
    xlabel: str,
    ylabel: str,
    title: str | None = None,
    front: Sequence[str] = (),
    references: Sequence[str] = (),
    logx: bool = False,
    logy: bool = False,
) -> Picture:
    """Two measures of each method with both intervals and its name: filled on the Pareto `front`, grey for `references`."""
    fig, ax = _axes(title, xlabel, ylabel, (8.4, 4.8))
    for logarithmic, axis, scale in ((logx, ax.xaxis, ax.set_xscale), (logy, ax.yaxis, ax.set_yscale)):
        if logarithmic:
            scale("log")
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_locator(NullLocator())
    spots = {name: tuple(shown(v) for v in pair) for name, pair in points.items()}
    for name, ((x, x0, x1), (y, y0, y1)) in spots.items():
        colour = "#999999" if name in references else plots.BLUE
        full = name in front or not front
        bars = {"xerr": [[x - x0], [x1 - x]], "yerr": [[y - y0], [y1 - y]]}
        mark = "D" if name in references else "o"
        face = colour if full else "white"
        ax.errorbar(x, y, **bars, fmt=mark, color=colour, mfc=face, ms=7, mew=1.6, lw=0.9, alpha=0.95)
    best = sorted(spots[name][0][:1] + spots[name][1][:1] for name in front if name in spots)
    ax.plot(*zip(*best), color=plots.BLUE, linestyle=":", linewidth=1.2, zorder=0) if best else None
    ax.plot([], [], "o", color=plots.BLUE, label="on the Pareto front" if front else "method")
    if front:
        ax.plot([], [], "o", color=plots.BLUE, mfc="white", mew=1.6, label="beaten")
    if references:
        ax.plot([], [], "D", color="#999999", label="reference")
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    ax.margins(0.09)
    labels.names(fig, ax, {name: (x[0], y[0]) for name, (x, y) in spots.items()})
    return fig


# -------------------------------------------------------------------------------------------------- tables of colour


@_styled
def heat(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    *,
    title: str | None = None,
    text: str = "{:g}",
    low: float = 0.0,
    high: float = 1.0,
    dark: str = "high",
    groups: Sequence[str] | None = None,
) -> Picture:
    """A table of numbers in colour: `values` row by row, None left blank; `dark`: which end of [low, high] is dark.

    groups: the kind of each column, written above it where it changes. Raises ValueError for a wrong number of entries.
    """
    if len(values) != len(rows) or any(len(row) != len(columns) for row in values):
        raise ValueError(
            f"{len(rows)} rows and {len(columns)} columns named; the values do not fit: give one list a row."
        )
    table = np.array([[np.nan if v is None else v for v in row] for row in values], dtype=float)
    size = (2.0 + 0.47 * len(columns), 1.75 + 0.3 * len(rows) + (0.25 if groups else 0))
    fig, ax = _axes(None, "", "", size)
    ax.imshow(
        table, cmap="Blues" if dark == "high" else "Blues_r", vmin=low, vmax=high, aspect="auto", alpha=0.9
    )
    for r, c in np.argwhere(np.isfinite(table)):
        share = (table[r, c] - low) / (high - low)
        white = (share if dark == "high" else 1 - share) > 0.55
        ax.text(
            c,
            r,
            text.format(table[r, c]),
            ha="center",
            va="center",
            fontsize=8,
            color="white" if white else plots.BLACK,
        )
    ax.set_yticks(range(len(rows)), rows)
    turned = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if max(map(len, columns)) > 3 else {}
    ax.set_xticks(range(len(columns)), columns, **turned)
    ax.grid(visible=False)
    ax.tick_params(length=0)
    for k, kind in enumerate(groups or ()):
        if k == 0 or groups[k - 1] != kind:
            ax.axvline(k - 0.5, color="white", linewidth=4)
            ax.text(k - 0.45, -0.62, kind, fontsize=8.5, weight="bold", va="bottom", ha="left")
    if title:
        fig.suptitle(title, x=0.02, ha="left", weight="bold", fontsize=10.5)
    return fig


@_styled
def decision(
    scores: Mapping[str, tuple[float, float, float]], first: Mapping[str, float], *, title: str
) -> Picture:
    """Scores of methods, each with the ends of its interval, the best on top, and how often each is first."""
    order = sorted(scores, key=lambda name: scores[name][0], reverse=True)
    fig, ax = _axes(title, "score", "", (8.4, 0.9 + 0.27 * len(order)))
    for k, name in enumerate(order):
        mean, low, high = scores[name]
        ax.errorbar(mean, k, xerr=[[mean - low], [high - mean]], fmt="o", color=plots.BLUE, capsize=3, ms=5.5)
        ax.annotate(
            f"first in {first[name]:.0%}",
            (1.02, k),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8.5,
            color=plots.BLACK if first[name] >= 0.05 else "#777777",
        )
    ax.set_yticks(range(len(order)), order)
    ax.set_ylim(len(order) - 0.5, -0.5)
    return fig


# ------------------------------------------------------------------------------------------------------------ claims


@_styled
def verdict_bars(counts: Mapping[str, Mapping[str, int]], *, title: str | None = None) -> Picture:
    """How many claims of each paper have which verdict: {paper: {verdict: number}}."""
    fig, ax = _axes(title, "claims", "", (8.4, 1.1 + 0.34 * len(counts)))
    for k, found in enumerate(counts.values()):
        left = 0
        for verdict in VERDICTS:
            n = found.get(verdict, 0)
            ax.barh(k, n, left=left, color=COLOURS[verdict], edgecolor="white", height=0.72)
            if n:
                ax.text(left + n / 2, k, str(n), ha="center", va="center", fontsize=9, weight="bold")
            left += n
    for verdict in VERDICTS:
        ax.barh([0], [0], color=COLOURS[verdict], label=verdict)
    ax.set_yticks(range(len(counts)), list(counts))
    ax.set_ylim(len(counts) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return fig


@_styled
def forest(lines: Sequence[Mapping[str, Any]], *, title: str | None = None) -> Picture:
    """Claims, a line each: the measured value with its interval beside what it is compared with, each line on a scale of its own.

    lines: those of `cfx_lib.bench.claims`; claims without a measured value are left out. Raises ValueError if none is left.
    """
    lines = [line for line in lines if drawable(line)]
    if not lines:
        raise ValueError("none of these claims has a measured value to draw: choose others.")
    fig, ax = _axes(
        title, "each line from its smallest to its largest number", "", (9.4, 1.1 + 0.27 * len(lines))
    )
    for k, line in enumerate(lines):
        effect, against = shown(line["effect"]), _alike(line["against"], line["effect"])
        low, high = min(*effect, *against), max(*effect, *against)
        (m, m0, m1), (a, a0, a1) = (
            [(v - low) / (high - low) if high > low else 0.5 for v in part] for part in (effect, against)
        )
        ax.axhline(k, color="#eeeeee", zorder=0)
        ax.errorbar(a, k + 0.17, xerr=[[a - a0], [a1 - a]], fmt="D", color="#888888", ms=4.5, lw=1.2)
        colour = COLOURS[line["verdict"]]
        bars = {"xerr": [[m - m0], [m1 - m]], "color": colour, "ms": 6, "lw": 1.8, "capsize": 3}
        ax.errorbar(m, k - 0.12, fmt=MARKS[line["verdict"]], **bars)
        ax.annotate(_compared(line), (1.03, k), xycoords=("axes fraction", "data"), va="center", fontsize=7.8)
    for verdict in dict.fromkeys(line["verdict"] for line in lines):
        ax.plot([], [], MARKS[verdict], color=COLOURS[verdict], label=verdict)
    ax.plot([], [], "D", color="#888888", label="compared with")
    ax.set_yticks(range(len(lines)), [line["name"].partition(".")[2] for line in lines])
    ax.set_ylim(len(lines) - 0.5, -0.6)
    ax.set_xticks([])
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.3 / (0.27 * len(lines))), ncols=5)
    return fig


def drawable(line: Mapping[str, Any]) -> bool:
    """Whether a line has two numbers."""
    parts = (line["effect"], line["against"])
    return all(v is not None and (not isinstance(v, Value) or v.defined) for v in parts)


def _alike(value: Value | float, like: Value | float) -> tuple[float, float, float]:
    """What `shown` gives, for a plain number on the scale of `like`."""
    share = isinstance(like, Value) and like.unit in _SHARES and not isinstance(value, Value)
    return shown(100 * value if share else value)


def _compared(line: Mapping[str, Any]) -> str:
    return f"{brief(line['effect'])}  against  {brief(line['against'], line['effect'])}"


def brief(value: Value | float | None, like: Value | float | None = None) -> str:
    """A measured or compared number in a few characters, without the number of images; a plain number in the unit of `like`."""
    if value is None:
        return "–"
    if isinstance(value, Value):
        return str(value).split(" (")[0]
    unit = like.unit if isinstance(like, Value) else ""
    return f"{100 * value if unit in _SHARES else value:,.4g} {unit}".strip()


# -------------------------------------------------------------------------------------------------------- a run in time


@_styled
def timeline(
    attempts: Mapping[str, Sequence[tuple[str, float, float]]], *, title: str | None = None
) -> Picture:
    """Which shard was made when: {attempt: [(shard, second it began, second it ended), ...]}, attempts after each other."""
    names = list(dict.fromkeys(name for bars in attempts.values() for name, _, _ in bars))
    fig, ax = _axes(title, "seconds of work", "", (8.4, 1.0 + 0.24 * len(names)))
    offset = 0.0
    for k, (label, bars) in enumerate(attempts.items()):
        begin = bars[0][1] if bars else 0.0
        for name, began, ended in bars:
            colour = plots.PALETTE[k % len(plots.PALETTE)]
            ax.barh(names.index(name), ended - began, left=offset + began - begin, color=colour, height=0.7)
        ax.barh([0], [0], color=plots.PALETTE[k % len(plots.PALETTE)], label=f"{label}: {len(bars)} made")
        offset += bars[-1][2] - begin if bars else 0.0
        if k + 1 < len(attempts):
            ax.axvline(offset, color=plots.BLACK, linestyle="--", linewidth=1.2)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return fig
