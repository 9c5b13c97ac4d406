"""Widgets that move: a trajectory slider, a before/after wipe, hyper-parameter sliders that really rerun.

Every function returns a `Moving`: as the last expression of a cell it shows the ipywidget (alive in
JupyterLab) and under it a static figure, so that a notebook turned into HTML shows something too.
`static=False` leaves the figure out; `.widget` is the bare ipywidget and `.figure` the static figure.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets as w
import numpy as np

from cfx_lib.learn import plots

_PIXELS = 320  # width of a large image on the screen


class Moving:
    """An ipywidget with the static figure that stands in for it where nothing is alive."""

    def __init__(self, widget: w.Widget, figure: Any = None, caption: str = "") -> None:
        self.widget, self.figure, self.caption = widget, figure, caption

    def _ipython_display_(self) -> None:
        from IPython.display import Markdown, display

        display(self.widget)
        if self.figure is not None:
            if self.caption:
                display(Markdown(f"*{self.caption}*"))
            display(self.figure)

    def __repr__(self) -> str:
        return f"<Moving {type(self.widget).__name__}, static figure: {self.figure!r}>"


def _png(image: np.ndarray, pixels: int = _PIXELS) -> bytes:
    """An image (H,W,3) in [0,1] as PNG bytes, enlarged by whole pixels to about `pixels` wide."""
    from matplotlib.image import imsave

    factor = max(1, round(pixels / image.shape[1]))
    big = (np.clip(image, 0, 1) * 255).round().astype(np.uint8).repeat(factor, 0).repeat(factor, 1)
    buffer = io.BytesIO()
    imsave(buffer, np.ascontiguousarray(big), format="png", metadata={"Software": None})
    return buffer.getvalue()


def _image(image: np.ndarray, pixels: int = _PIXELS) -> w.Image:
    return w.Image(
        value=_png(image, pixels), format="png", layout=w.Layout(width=f"{pixels}px", max_width="100%")
    )


def trajectory(
    result: Any,
    image: int = 0,
    *,
    attempt: int | None = None,
    static: bool = True,
    labels: tuple[str, str] = ("noisy z_t", "clean x_t"),
    counter: str = "t",
) -> Moving:
    """A slider over the recorded steps of one image: noisy state, clean image, P(target).

    `result` is a `CFResult` made with `record=True` (or its `steps`); `labels` and `counter` as in
    `plots.trajectory_strip`. Raises `ValueError` if nothing was recorded.
    """
    steps = plots._steps_of(result, image, attempt)
    noisy = [_png(plots.to_pixels(s["x_t"] if s["z"] is None else s["z"])[0], 256) for s in steps]
    clean = [_png(plots.to_pixels(s["x_t"])[0], 256) for s in steps]
    left, right = (w.Image(value=v[0], format="png", layout=w.Layout(width="256px")) for v in (noisy, clean))
    slider = w.IntSlider(0, 0, len(steps) - 1, description="step", layout=w.Layout(width="420px"))
    play = w.Play(value=0, min=0, max=len(steps) - 1, interval=150)
    w.jslink((play, "value"), (slider, "value"))
    told, bar = w.HTML(), w.FloatProgress(0, min=0, max=1, layout=w.Layout(width="250px"))

    def move(change: dict[str, Any]) -> None:
        k = change["new"]
        left.value, right.value = noisy[k], clean[k]
        step = steps[k]
        chance = "" if step["p"] is None else f" &nbsp; P(target) = {step['p']:.2f}"
        index = f" (respaced index {step['i']})" if counter == "t" else ""
        told.value = f"{counter} = {step['t']}{index}{chance}"
        bar.value = step["p"] or 0.0

    slider.observe(move, "value")
    move({"new": 0})
    pictures = [
        w.VBox([w.HTML(f"<b>{_escape(name)}</b>"), picture])
        for name, picture in zip(labels, (left, right), strict=True)
    ]
    guided = any(step["p"] is not None for step in steps)  # nobody was asked about an unguided chain
    box = w.VBox([w.HBox([play, slider]), w.HBox(pictures), w.HBox([bar, told] if guided else [told])])
    figure = (
        plots.trajectory_strip(result, image, attempt=attempt, labels=labels, counter=counter)
        if static
        else None
    )
    return Moving(box, figure, "The same trajectory as a strip:")


def wipe(
    before: Any, after: Any, *, labels: tuple[str, str] = ("input", "counterfactual"), static: bool = True
) -> Moving:
    """A slider that wipes from one image to another; batches (N,C,H,W) add a choice of the image.

    Raises `ValueError` for images of different shapes.
    """
    a, b = plots.to_pixels(before), plots.to_pixels(after)
    if a.shape != b.shape:
        raise ValueError(f"wipe needs two images of one shape, got {a.shape} and {b.shape} (N,H,W,3)")
    columns = a.shape[2]
    slider = w.IntSlider(
        columns // 2, 0, columns, description="wipe", readout=False, layout=w.Layout(width="320px")
    )
    which = w.IntSlider(0, 0, len(a) - 1, description="image", layout=w.Layout(width="320px"))
    picture = _image(a[0])

    def draw(_: Any = None) -> None:
        edge, k = slider.value, which.value
        mixed = np.concatenate([b[k][:, :edge], a[k][:, edge:]], axis=1)
        if 0 < edge < columns:
            mixed[:, edge - 1] = 0.35 * mixed[:, edge - 1]  # the edge of the wipe
        picture.value = _png(mixed)

    slider.observe(draw, "value")
    which.observe(draw, "value")
    draw()
    names = w.HTML(f"<b>{labels[1]}</b> | {labels[0]}")
    box = w.VBox(([which] if len(a) > 1 else []) + [slider, names, picture])
    figure = None
    if static:
        x, y = (np.moveaxis(v, 3, 1)[:8] for v in (a, b))
        figure = plots.image_rows({labels[0]: x, labels[1]: y}, value_range=(0, 1), size=1.5)
    return Moving(box, figure, "Side by side:")


def rerun(
    fn: Callable[..., Any],
    controls: Mapping[str, tuple | Sequence[Any]],
    *,
    defaults: Mapping[str, Any] | None = None,
    static: bool = True,
    label: str = "Run",
) -> Moving:
    """Sliders and a button that really run `fn(**values)` again and show what it returns.

    `controls`: `{name: (low, high, step)}` is a slider (integers or floats), a list is a choice, a bool a
    tick box. Nothing runs while a slider moves, only when the button is pressed; an exception is shown as one
    line. The static figure is `fn(**defaults)`, where a default that is not given is the middle of the
    slider or the first choice.
    """
    knobs = {name: _knob(name, spec, (defaults or {}).get(name)) for name, spec in controls.items()}
    unknown = set(defaults or {}) - set(knobs)
    if unknown:
        raise ValueError(f"defaults for {sorted(unknown)}, which are no controls: known are {sorted(knobs)}")
    button, told, shown = w.Button(description=label, button_style="primary"), w.HTML(), w.Output()

    def run(_: Any = None) -> None:
        import time

        values = {name: knob.value for name, knob in knobs.items()}
        button.disabled, told.value, begun = True, "running…", time.perf_counter()
        try:
            value = fn(**values)
        except Exception as error:
            told.value = f"<b>{type(error).__name__}</b>: {_escape(str(error))}"
        else:
            listed = ", ".join(f"{name} = {v}" for name, v in values.items())
            told.value = f"{_escape(listed)}: {time.perf_counter() - begun:.1f} s"
            shown.outputs = (_output(value),) if value is not None else ()
        finally:
            button.disabled = False

    button.on_click(run)
    box = w.VBox([*knobs.values(), w.HBox([button, told]), shown])
    start = {name: knob.value for name, knob in knobs.items()}
    caption = "With " + ", ".join(f"{name} = {value}" for name, value in start.items()) + ":"
    return Moving(box, fn(**start) if static else None, caption)


def _knob(name: str, spec: Any, value: Any) -> w.Widget:
    look = {"description": name, "style": {"description_width": "110px"}, "layout": w.Layout(width="420px")}
    if isinstance(spec, bool):
        return w.Checkbox(value=spec if value is None else value, **look)
    if isinstance(spec, range):
        spec = (spec.start, spec[-1], spec.step)
    if isinstance(spec, tuple) and len(spec) == 3 and all(isinstance(v, (int, float)) for v in spec):
        low, high, step = spec
        whole = all(isinstance(v, int) for v in spec)
        middle = low + step * round((high - low) / step / 2)
        kind = w.IntSlider if whole else w.FloatSlider
        return kind(
            value=middle if value is None else value,
            min=low,
            max=high,
            step=step,
            continuous_update=False,
            **look,
        )
    if isinstance(spec, (list, tuple)) and len(spec):
        return w.Dropdown(options=list(spec), value=spec[0] if value is None else value, **look)
    raise ValueError(
        f"control {name!r}: give (low, high, step), a list of choices, a range or a bool; got {spec!r}"
    )


def _output(value: Any) -> dict[str, Any]:
    """A value as one notebook output, so that it can be shown from a callback without printing."""
    import base64

    if hasattr(value, "png"):
        image, size = value._repr_png_()
        data = {"image/png": base64.b64encode(image).decode(), "text/plain": repr(value)}
        return {"output_type": "display_data", "data": data, "metadata": {"image/png": size}}
    data = {"text/plain": repr(value)}
    if hasattr(value, "_repr_html_"):
        data["text/html"] = value._repr_html_()
    return {"output_type": "display_data", "data": data, "metadata": {}}


def _escape(text: str) -> str:
    import html

    return html.escape(text)
