"""Widgets: they react, and a static figure stands under each."""

import ipywidgets as w
import pytest
import torch

from cfx_lib.learn import plots, widgets
from cfx_lib.types import Step


@pytest.fixture
def steps():
    x = torch.rand(2, 3, 8, 8) * 2 - 1
    return [Step(i, 10 * i, x, x * i / 4, torch.tensor([i / 4, 0.5])) for i in range(4, -1, -1)]


def walk(widget, kind):
    here = [widget] if isinstance(widget, kind) else []
    return here + [found for child in getattr(widget, "children", ()) for found in walk(child, kind)]


def test_trajectory_moves_through_the_steps(steps):
    moving = widgets.trajectory(steps, 0)
    slider, clean = walk(moving.widget, w.IntSlider)[0], walk(moving.widget, w.Image)[1]
    first = clean.value
    assert slider.max == 4 and "t = 40 (respaced index 4)" in walk(moving.widget, w.HTML)[-1].value
    slider.value = 4
    assert clean.value != first and "P(target) = 0.00" in walk(moving.widget, w.HTML)[-1].value
    assert isinstance(moving.figure, plots.Picture)
    named = widgets.trajectory(steps, 0, labels=("attacked x'", "F(x')"), counter="step")
    said = [part.value for part in walk(named.widget, w.HTML)]
    assert "step = 40 " in said[-1] and "index" not in said[-1] and any("attacked" in part for part in said)
    assert "attacked x'" in named.figure.alt and "step = 0" in named.figure.alt


def test_wipe_uncovers_the_second_image():
    before, after = torch.full((2, 3, 8, 8), -1.0), torch.full((2, 3, 8, 8), 1.0)
    moving = widgets.wipe(before, after)
    which, slider = walk(moving.widget, w.IntSlider)
    image = walk(moving.widget, w.Image)[0]
    slider.value = 0
    dark = image.value
    slider.value = 8
    assert image.value != dark
    which.value = 1
    assert len(moving.figure.axes) == 4
    assert len(walk(widgets.wipe(before[0], after[0]).widget, w.IntSlider)) == 1
    with pytest.raises(ValueError, match="one shape"):
        widgets.wipe(before, after[:1])


def test_rerun_runs_only_on_the_button():
    calls = []

    def fn(start, loss, clip):
        calls.append((start, loss, clip))
        return plots.curve({"a": [start, 1]}, xlabel="x", ylabel="y")

    moving = widgets.rerun(
        fn, {"start": (10, 60, 10), "loss": ["a", "b"], "clip": True}, defaults={"start": 20}
    )
    assert calls == [(20, "a", True)] and moving.caption == "With start = 20, loss = a, clip = True:"
    slider, button = walk(moving.widget, w.IntSlider)[0], walk(moving.widget, w.Button)[0]
    slider.value = 40
    assert len(calls) == 1
    button.click()
    assert calls[-1] == (40, "a", True) and not button.disabled
    shown = walk(moving.widget, w.Output)[0].outputs
    assert shown[0]["data"]["image/png"] and "start = 40" in walk(moving.widget, w.HTML)[0].value


def test_rerun_shows_an_error_as_one_line_and_stays_usable():
    def fn(k):
        raise ValueError("k < 0 is <no> good")

    moving = widgets.rerun(fn, {"k": (0.0, 1.0, 0.1)}, static=False)
    walk(moving.widget, w.Button)[0].click()
    assert "<b>ValueError</b>: k &lt; 0" in walk(moving.widget, w.HTML)[0].value
    assert not walk(moving.widget, w.Button)[0].disabled and moving.figure is None


@pytest.mark.parametrize(
    ("controls", "defaults", "said"),
    [({"k": "text"}, {}, "give \\(low, high, step\\)"), ({"k": True}, {"j": 1}, "no controls")],
)
def test_bad_controls_are_refused(controls, defaults, said):
    with pytest.raises(ValueError, match=said):
        widgets.rerun(lambda k: k, controls, defaults=defaults)


def test_ranges_become_sliders():
    knob = widgets._knob("seed", range(0, 10, 3), None)
    assert isinstance(knob, w.IntSlider) and (knob.min, knob.max, knob.step) == (0, 9, 3)


def test_the_static_figure_is_displayed_under_the_widget(monkeypatch, steps):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    moving = widgets.trajectory(steps)
    moving._ipython_display_()
    assert shown[0] is moving.widget and shown[-1] is moving.figure
