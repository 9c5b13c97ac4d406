"""The figures of the course, in one style: large pixels, colour-blind-safe colours, labelled axes.

Every function returns a `Picture` (a matplotlib figure that shows itself as the last expression of a
cell, is never shown twice, and has `savefig`). Images are tensors (N,C,H,W) with C = 1 or 3, in [-1,1]
unless `value_range` says otherwise.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, YELLOW, BLACK = PALETTE = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#B8A800", "#222222",
)  # fmt: skip
"""Okabe and Ito's colours, told apart in every common form of colour blindness (a darker yellow)."""

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)), (0, (3, 1)))
_STYLE = {
    "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "figure.titlesize": 11, "legend.fontsize": 8.5,
    "xtick.labelsize": 8.5, "ytick.labelsize": 8.5, "font.family": "DejaVu Sans", "svg.hashsalt": "cfx",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#dddddd",
    "grid.linewidth": 0.6, "axes.axisbelow": True, "axes.edgecolor": "#777777", "lines.linewidth": 1.8,
    "legend.frameon": False, "figure.facecolor": "white", "axes.prop_cycle": mpl.cycler(color=PALETTE),
}  # fmt: skip
_DPI = 150
_SCREEN = 100  # CSS pixels an inch
_GAP = 0.06  # inches between images
_SIZE = 1.28  # inches an image: 64 pixels become 192 at 150 dots an inch, three by three each
_CHANGE = LinearSegmentedColormap.from_list(
    "change",
    [(0, "white"), (0.08, "#fcecbf"), *((v, mpl.colormaps["magma_r"](v)) for v in np.linspace(0.15, 1, 30))],
)
"""White where nothing changed, then matplotlib's magma reversed (equal steps in lightness)."""


class Picture(Figure):
    """A figure outside pyplot's global state; Jupyter shows it through `_repr_png_`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        FigureCanvasAgg(self)

    def png(self, dpi: int = _DPI) -> bytes:
        """The figure as PNG bytes (the same bytes for the same figure)."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
        return buffer.getvalue()

    def _repr_png_(self) -> tuple[bytes, dict[str, Any]]:
        width, height = self.get_size_inches()
        size = {"width": round(width * _SCREEN), "height": round(height * _SCREEN)}
        return self.png(), {**size, "alt": self.alt}

    @property
    def alt(self) -> str:
        """Alternative text: the title and every label and caption that is written in the figure."""
        found = [self.get_suptitle()]
        for ax in self.axes:
            found += [ax.get_title("left"), ax.get_title(), ax.get_xlabel(), ax.get_ylabel()]
            found += [text.get_text() for text in ax.texts]
        told = dict.fromkeys(" ".join(text.split()) for text in found if text.strip())
        return "figure: " + "; ".join(told) if told else "a row of images"

    def __repr__(self) -> str:
        title = self.get_suptitle()
        return f"<Picture{': ' + title if title else ''}>"


def _styled(make: Any) -> Any:
    """Run a plotting function under the course's style without touching the reader's own settings."""
    import functools

    @functools.wraps(make)
    def run(*args: Any, **kwargs: Any) -> Picture:
        with mpl.rc_context(_STYLE):
            return make(*args, **kwargs)

    return run


def _array(value: Any) -> np.ndarray:
    """A tensor or array as float64 numpy on the CPU."""
    if hasattr(value, "detach"):
        value = value.detach().float().cpu().numpy()
    return np.asarray(value, dtype=float)


def to_pixels(x: Any, value_range: tuple[float, float] = (-1, 1)) -> np.ndarray:
    """Images (N,C,H,W) or (C,H,W) or (H,W) as (N,H,W,3) in [0,1]; NaN is shown as magenta, never hidden."""
    a = _array(x)
    a = a[None, None] if a.ndim == 2 else a[None] if a.ndim == 3 else a
    if a.ndim != 4 or a.shape[1] not in (1, 3):
        raise ValueError(
            f"expected images (N,C,H,W) with C = 1 or 3, got shape {np.shape(x)}: give x[:, :3] or x[None]"
        )
    low, high = value_range
    a = np.clip((a - low) / (high - low), 0, 1).transpose(0, 2, 3, 1)
    a = np.repeat(a, 3, axis=3) if a.shape[3] == 1 else a.copy()
    a[np.isnan(a).any(axis=3)] = (1, 0, 1)
    return a


def difference(x: Any, x_cf: Any) -> np.ndarray:
    """Size of the change at each pixel: mean over channels of |x_cf - x|, (N,H,W), from 0 to 2."""
    return np.abs(_array(x_cf) - _array(x)).mean(axis=1)


def amplified(change: Any, like: Any = None) -> Any:
    """A signed change or gradient (N,C,H,W) as images in [-1,1]: grey is zero, the largest values of each image fill the scale.

    `like` (N,C,H,W): the change whose scale is used, so that several can be compared. The largest half percent is clipped.
    """
    top = (change if like is None else like).abs().flatten(1).quantile(0.995, dim=1).view(-1, 1, 1, 1)
    return (change / top.clamp(min=1e-12)).clamp(-1, 1)


def _grid(
    captions: Sequence[float],
    columns: int,
    size: float,
    title: str | None,
    *,
    left: float,
    right: float = 0.0,
) -> tuple[Picture, np.ndarray]:
    """An empty figure of square cells of `size` inches; `captions` holds the inches above each row's images."""
    top = 0.32 if title else 0.04
    width = max(left + columns * (size + _GAP) + right, 0.1 * len(title or "") + 0.3)
    height = top + sum(captions) + len(captions) * (size + _GAP)
    fig = Picture(figsize=(width, height))
    axes = np.empty((len(captions), columns), dtype=object)
    for r in range(len(captions)):
        bottom = height - top - sum(captions[: r + 1]) - r * (size + _GAP) - size
        for c in range(columns):
            box = [(left + c * (size + _GAP)) / width, bottom / height, size / width, size / height]
            axes[r, c] = ax = fig.add_axes(box)
            ax.set_axis_off()
    if title:
        fig.suptitle(title, y=1 - 0.05 / height, va="top", weight="bold")
    return fig, axes


def _picture(ax: Any, image: np.ndarray, caption: str | None = None, **kwargs: Any) -> Any:
    """Draw one image with its pixels as crisp squares, and a caption above it."""
    shown = ax.imshow(image, interpolation="nearest", aspect="equal", **kwargs)
    if caption:
        ax.set_title(caption, pad=2.5, fontsize=8, linespacing=1.1)
    return shown


def _row_label(ax: Any, text: str, colour: str = BLACK) -> None:
    ax.text(
        -0.07,
        0.5,
        text,
        transform=ax.transAxes,
        ha="right",
        va="center",
        fontsize=9,
        color=colour,
        weight="bold",
    )


def _label_width(labels: Sequence[str] | None) -> float:
    """Inches that the longest line of the row labels takes."""
    lines = [line for label in labels or () for line in str(label).split("\n")]
    return 0.2 + 0.078 * max(map(len, lines)) if lines else _GAP


def _caption_height(captions: Sequence[Any] | None) -> float:
    lines = max((str(c).count("\n") + 1 for c in captions or () if c not in (None, "")), default=0)
    return 0.05 + 0.14 * lines if lines else 0.0


@_styled
def image_grid(
    x: Any,
    titles: Sequence[str] | None = None,
    *,
    columns: int | None = None,
    row_labels: Sequence[str] | None = None,
    col_labels: Sequence[str] | None = None,
    title: str | None = None,
    size: float = _SIZE,
    value_range: tuple[float, float] = (-1, 1),
) -> Picture:
    """A grid of images (N,C,H,W), row by row; `titles` one caption an image, `size` inches an image.

    `columns` defaults to at most 8. Raises `ValueError` for an empty batch or a number of labels that
    does not fit.
    """
    a = to_pixels(x, value_range)
    if not len(a):
        raise ValueError("image_grid was given no image")
    columns = columns or (len(col_labels) if col_labels else min(len(a), 8))
    rows = -(-len(a) // columns)
    _same("titles", titles, len(a))
    _same("row_labels", row_labels, rows)
    _same("col_labels", col_labels, columns)
    heads = [titles[r * columns : (r + 1) * columns] if titles else None for r in range(rows)]
    heads[0] = heads[0] or col_labels
    captions = [_caption_height(head) for head in heads]
    fig, axes = _grid(captions, columns, size, title, left=_label_width(row_labels))
    for k, image in enumerate(a):
        head = heads[k // columns]
        _picture(axes.flat[k], image, str(head[k % columns]) if head else None)
    for r, label in enumerate(row_labels or ()):
        _row_label(axes[r, 0], str(label))
    return fig


def _same(name: str, labels: Sequence[Any] | None, n: int) -> None:
    if labels is not None and len(labels) != n:
        raise ValueError(f"{name} has {len(labels)} entries for {n} places: give one for each")


@_styled
def image_rows(
    rows: Mapping[str, Any],
    *,
    titles: Mapping[str, Sequence[str]] | None = None,
    col_labels: Sequence[str] | None = None,
    title: str | None = None,
    size: float = _SIZE,
    value_range: tuple[float, float] = (-1, 1),
) -> Picture:
    """One labelled row of images (N,C,H,W) for each entry; `titles[label]` captions a row's images."""
    pixels = {label: to_pixels(x, value_range) for label, x in rows.items()}
    columns = max(len(a) for a in pixels.values())
    heads = [(titles or {}).get(label) for label in pixels]
    heads[0] = heads[0] or col_labels
    fig, axes = _grid(
        [_caption_height(h) for h in heads], columns, size, title, left=_label_width(list(rows))
    )
    for r, (label, images) in enumerate(pixels.items()):
        _row_label(axes[r, 0], label)
        for c, image in enumerate(images):
            _picture(axes[r, c], image, str(heads[r][c]) if heads[r] else None)
    return fig


@_styled
def counterfactual_figure(
    x: Any,
    x_cf: Any,
    x_true: Any | None = None,
    *,
    p_before: Any | None = None,
    p_after: Any | None = None,
    p_true: Any | None = None,
    target_name: str = "target",
    flipped: Any | None = None,
    found: Any | None = None,
    title: str | None = None,
    size: float = _SIZE,
) -> Picture:
    """Input, counterfactual, true counterfactual (where known) and map of the change, one column an image.

    The probabilities (N,) of the target are written above each image; `flipped` (N,) adds ✔ or ✘; `found`
    (N,) says for which images a true counterfactual exists. The maps share one scale, written at the colour
    bar; the change of the true counterfactual is shown too when there is one.
    """
    images = {"input": to_pixels(x), "counterfactual": to_pixels(x_cf)}
    maps = {"change": difference(x, x_cf)}
    told = {"input": p_before, "counterfactual": p_after}
    if x_true is not None:
        images["true\ncounterfactual"] = to_pixels(x_true)
        maps["true change"] = difference(x, x_true)
        told["true\ncounterfactual"] = p_true
    n = len(images["input"])
    marks = None if flipped is None else _array(flipped).astype(bool)
    there = np.ones(n, dtype=bool) if found is None else _array(found).astype(bool)
    heads = [_probabilities(told[label], n, target_name) for label in images]
    if marks is not None:
        heads[1] = [f"{'✔' if ok else '✘'} {text}" for ok, text in zip(marks, heads[1], strict=True)]
    labels = [*images, *maps]
    captions = [_caption_height(head) for head in heads] + [0.0] * len(maps)
    fig, axes = _grid(captions, n, size, title, left=_label_width(labels), right=0.62)
    top = max(
        0.05,
        *(
            float(np.nanmax(m[there if label.startswith("true") else slice(None)], initial=0))
            for label, m in maps.items()
        ),
    )
    for r, label in enumerate(labels):
        _row_label(axes[r, 0], label)
        for c in range(n):
            if label.startswith("true") and not there[c]:
                axes[r, c].text(0.5, 0.5, "none found", ha="center", va="center", fontsize=8, color="#777777")
            elif label in images:
                _picture(axes[r, c], images[label][c], heads[r][c])
            else:
                shown = _picture(axes[r, c], maps[label][c], cmap=_CHANGE, vmin=0, vmax=top)
                _frame(axes[r, c])
    _colour_bar(fig, axes[len(images), -1], shown, "mean |change|")
    return fig


def explained(
    result: Any,
    x_true: Any | None = None,
    *,
    images: Sequence[int] | None = None,
    found: Any | None = None,
    **options: Any,
) -> Picture:
    """`counterfactual_figure` of a `CFResult`, with P(target) from its logits.

    `x_true` (N,C,H,W) and `found` (N,) belong to all its images; `images` picks some of them. Other options
    are those of `counterfactual_figure`.
    """
    picked = list(range(len(result.x))) if images is None else [int(k) for k in images]

    def chance(logits: Any) -> Any:
        if logits is None:
            return None
        return logits.float().softmax(1)[range(len(logits)), result.target.tolist()][picked]

    return counterfactual_figure(
        result.x[picked],
        result.x_cf[picked],
        None if x_true is None else x_true[picked],
        p_before=chance(result.logits_before),
        p_after=chance(result.logits_after),
        flipped=result.flipped[picked],
        found=None if found is None else found[picked],
        **options,
    )


def _probabilities(values: Any, n: int, name: str) -> list[str]:
    return [""] * n if values is None else [f"P({name}) = {p:.2f}" for p in _array(values)]


def _frame(ax: Any) -> None:
    """A thin frame, for pictures whose ground is white."""
    ax.set_axis_on()
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set(visible=True, color="#bbbbbb", linewidth=0.6)


def _colour_bar(fig: Picture, beside: Any, shown: Any, label: str) -> None:
    box = beside.get_position()
    cax = fig.add_axes([box.x1 + 0.08 / fig.get_figwidth(), box.y0, 0.1 / fig.get_figwidth(), box.height])
    bar = fig.colorbar(shown, cax=cax)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7.5, length=2)
    bar.outline.set_visible(False)


def _steps_of(steps: Any, image: int, attempt: int | None = None) -> list[dict[str, Any]]:
    """The recorded steps of one image, in order; those of its last attempt unless told otherwise."""
    steps = list(getattr(steps, "steps", None) or (steps if isinstance(steps, (list, tuple)) else []))
    found = []
    for step in steps:
        rows = getattr(step, "rows", None)
        rows = list(range(len(step.x_t))) if rows is None else [int(r) for r in rows]
        if image in rows:
            k = rows.index(image)
            p = None if step.probability is None else float(step.probability[k])
            z = None if step.z is None else step.z[k]
            found.append(
                {"i": step.i, "t": step.t, "z": z, "x_t": step.x_t[k], "p": p, "attempt": step.attempt or 0}
            )
    if not found:
        raise ValueError(f"no steps of image {image} were recorded: call explain(..., record=True)")
    wanted = found[-1]["attempt"] if attempt is None else attempt
    return [s for s in found if s["attempt"] == wanted]


@_styled
def trajectory_strip(
    steps: Any,
    image: int = 0,
    *,
    n: int = 8,
    attempt: int | None = None,
    title: str | None = None,
    size: float = _SIZE,
    labels: tuple[str, str] = ("noisy z_t", "clean x_t"),
    counter: str = "t",
) -> Picture:
    """Two rows over the steps of one image: the noisy state z_t, and the clean image x_t with P(target).

    `steps` is a `CFResult` made with `record=True` or its `steps`; `n` evenly spaced steps are
    shown, first and last included; `labels` and `counter` name the two images and the steps of a method that
    has others. Raises `ValueError` if nothing was recorded for the image.
    """
    found = _steps_of(steps, image, attempt)
    picked = [
        found[k] for k in sorted({round(k) for k in np.linspace(0, len(found) - 1, min(n, len(found)))})
    ]
    fig, axes = _grid([0.19, 0.19], len(picked), size, title, left=_label_width(labels))
    for c, step in enumerate(picked):
        if step["z"] is not None:
            _picture(axes[0, c], to_pixels(step["z"])[0], f"{counter} = {step['t']}")
        _picture(axes[1, c], to_pixels(step["x_t"])[0], None if step["p"] is None else f"P = {step['p']:.2f}")
    for r, label in enumerate(labels):
        _row_label(axes[r, 0], label)
    return fig


@_styled
def probability_curve(
    steps: Any,
    *,
    images: Sequence[int] | None = None,
    title: str | None = None,
    xlabel: str = "step of the reverse chain",
    ylabel: str = "P(target) of the clean image",
) -> Picture:
    """P(target) at every recorded step, one thin line an image and their mean in bold (DiME, Fig. 3.8)."""
    recorded = list(getattr(steps, "steps", None) or steps)
    if not recorded:
        raise ValueError("no steps were recorded: call explain(..., record=True)")
    every = {int(r) for s in recorded for r in (range(len(s.x_t)) if s.rows is None else s.rows)}
    lines = [
        [s["p"] for s in _steps_of(recorded, k)] for k in (images if images is not None else sorted(every))
    ]
    fig, ax = _axes(title, xlabel, ylabel)
    for line in lines:
        ax.plot(line, color=SKY, alpha=0.55, linewidth=1)
    if len({len(line) for line in lines}) == 1 and len(lines) > 1:
        ax.plot(np.mean(lines, axis=0), color=BLUE, linewidth=2.4, label=f"mean of {len(lines)} images")
        ax.legend(loc="best")
    ax.axhline(0.5, color="#777777", linestyle=":", linewidth=1)
    ax.set_ylim(-0.02, 1.02)
    ax.xaxis.get_major_locator().set_params(integer=True)
    return fig


def _axes(
    title: str | None, xlabel: str, ylabel: str, figsize: tuple[float, float] = (6.2, 3.4)
) -> tuple[Picture, Any]:
    fig = Picture(figsize=figsize, layout="constrained")
    fig.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    ax = fig.add_subplot()
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if title:
        ax.set_title(title, weight="bold", fontsize=10.5, loc="left")
    return fig, ax


def _mean_low_high(value: Any) -> tuple[float, float, float]:
    """A metrics `Value`, a dict or a number as (mean, low, high); no interval: low = high = mean."""
    if isinstance(value, Mapping):
        mean, low, high = (value.get(name) for name in ("mean", "low", "high"))
    else:
        mean, low, high = (getattr(value, name, None) for name in ("mean", "low", "high"))
        mean = float(value) if callable(mean) or mean is None else mean
    ends = [mean if v is None or np.isnan(v) else v for v in (low, high)]
    return float(mean), float(ends[0]), float(ends[1])


def _series(data: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Read the forms that `curve` takes into xs, ys, low, high."""
    if not isinstance(data, tuple):
        ys = _array(data)
        return np.arange(len(ys), dtype=float), ys, None, None
    xs = _array(data[0])
    if len(data) == 4:
        return xs, *(_array(v) for v in data[1:])
    values = data[1]
    if len(values) and (isinstance(values[0], Mapping) or hasattr(values[0], "low")):
        table = np.array([_mean_low_high(v) for v in values])
        return xs, table[:, 0], table[:, 1], table[:, 2]
    return xs, _array(values), None, None


@_styled
def curve(
    series: Mapping[str, Any],
    *,
    xlabel: str,
    ylabel: str,
    title: str | None = None,
    logx: bool = False,
    logy: bool = False,
    hlines: Mapping[str, float] | None = None,
    markers: bool | None = None,
    figsize: tuple[float, float] = (6.2, 3.4),
) -> Picture:
    """Curves with their intervals: `{name: ys | (xs, ys) | (xs, [Value, ...]) | (xs, ys, low, high)}`.

    `hlines` adds labelled horizontal lines (a bound, the paper's value); `markers` defaults to at most 25
    points.
    """
    fig, ax = _axes(title, xlabel, ylabel, figsize)
    for k, (name, data) in enumerate(series.items()):
        xs, ys, low, high = _series(data)
        dots = markers if markers is not None else len(xs) <= 25
        colour = PALETTE[k % len(PALETTE)]
        mark = _MARKERS[k % len(_MARKERS)] if dots else None
        ax.plot(
            xs, ys, label=name, color=colour, linestyle=_LINES[k % len(_LINES)], marker=mark, markersize=4.5
        )
        if low is not None and high is not None:
            ax.fill_between(xs, low, high, color=colour, alpha=0.18, linewidth=0)
    for label, y in (hlines or {}).items():
        ax.axhline(y, color="#777777", linestyle=":", linewidth=1.2)
        ax.annotate(
            label,
            (1, y),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            fontsize=8,
            color="#555555",
        )
    if logx:
        ax.set_xscale("log")
    elif all(float(x).is_integer() for data in series.values() for x in _series(data)[0]):
        ax.xaxis.get_major_locator().set_params(integer=True)  # steps and counts have no halves
    if logy:
        ax.set_yscale("log")
    if len(series) > 1 or next(iter(series), ""):
        ax.legend(loc="best")
    return fig


@_styled
def interval_bars(
    rows: Sequence[tuple[Any, ...]],
    *,
    xlabel: str,
    title: str | None = None,
    reference: str = "paper",
    measured: str = "measured here",
) -> Picture:
    """Paper against measured, one line a row: `rows` of (label, paper's number, Value or number).

    The measured value carries its interval. A missing one is left blank, never drawn as zero.
    """
    fig, ax = _axes(title, xlabel, "", (7.6, 0.95 + 0.36 * len(rows)))
    for k, (label, claimed, value) in enumerate(rows):
        del label
        if value is not None:
            mean, low, high = _mean_low_high(value)
            spread = [[max(mean - low, 0)], [max(high - mean, 0)]]
            ax.errorbar(
                mean, k + 0.1, xerr=spread, fmt="o", color=BLUE, markersize=6, capsize=3.5, linewidth=1.8
            )
        if claimed is not None:
            mean, low, high = _mean_low_high(claimed)
            ax.errorbar(
                mean,
                k - 0.14,
                xerr=[[mean - low], [high - mean]],
                fmt="D",
                color=ORANGE,
                markersize=6,
                capsize=3,
            )
    ax.errorbar([], [], fmt="D", color=ORANGE, label=reference)
    ax.errorbar([], [], xerr=[], fmt="o", color=BLUE, capsize=3.5, label=f"{measured} (interval)")
    ax.set(yticks=range(len(rows)), yticklabels=[str(r[0]) for r in rows], ylim=(len(rows) - 0.5, -0.5))
    ax.grid(axis="y", visible=False)
    ax.margins(x=0.08)
    if any(r[1] is not None for r in rows):
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return fig


@_styled
def histogram(
    samples: Mapping[str, Any],
    *,
    xlabel: str,
    pdf: Mapping[str, tuple[Any, Any]] | None = None,
    density: bool = True,
    bins: int = 60,
    title: str | None = None,
) -> Picture:
    """Histograms on common bins, with exact densities drawn over them: `pdf = {name: (xs, ys)}`."""
    fig, ax = _axes(title, xlabel, "density" if density else "count")
    arrays = {name: _array(values).ravel() for name, values in samples.items()}
    every = np.concatenate(list(arrays.values()))
    edges = np.histogram_bin_edges(every[np.isfinite(every)], bins)
    for k, (name, values) in enumerate(arrays.items()):
        colour = PALETTE[k % len(PALETTE)]
        ax.hist(values, edges, density=density, color=colour, alpha=0.4, label=name)
        ax.hist(values, edges, density=density, color=colour, histtype="step", linewidth=1.1)
    for k, (name, (xs, ys)) in enumerate((pdf or {}).items()):
        ax.plot(
            _array(xs), _array(ys), color=BLACK, linestyle=_LINES[k % len(_LINES)], linewidth=1.6, label=name
        )
    ax.legend(loc="best")
    return fig


@_styled
def losses(
    history: Mapping[str, Any],
    *,
    smooth: float = 0.98,
    xlabel: str = "step",
    ylabel: str = "loss",
    logy: bool = False,
    title: str | None = None,
) -> Picture:
    """Training curves: raw values faint, their bias-corrected exponential mean (factor `smooth`) in bold."""
    fig, ax = _axes(title, xlabel, ylabel)
    for k, (name, data) in enumerate(history.items()):
        xs, ys, _, _ = _series(data)
        colour = PALETTE[k % len(PALETTE)]
        ax.plot(xs, ys, color=colour, alpha=0.25, linewidth=0.8)
        ax.plot(xs, _smooth(ys, smooth), color=colour, linestyle=_LINES[k % len(_LINES)], label=name)
        if not logy and len(ys) > 20:
            ax.set_ylim(top=max(float(np.nanpercentile(ys, 99)), float(ax.get_ylim()[0])))
    if logy:
        ax.set_yscale("log")
    ax.legend(loc="best")
    return fig


def _smooth(ys: np.ndarray, factor: float) -> np.ndarray:
    factor = max(0.0, min(factor, 1 - 20 / len(ys)))  # few points are shown as they are
    kept, weight, out = 0.0, 0.0, []
    for y in ys:
        kept, weight = factor * kept + (1 - factor) * y, factor * weight + 1 - factor
        out.append(kept / weight)
    return np.array(out)
