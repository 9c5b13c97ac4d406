"""Figures: they draw, keep the pixels, refuse what they cannot show, and leave matplotlib's settings alone."""

import matplotlib as mpl
import numpy as np
import pytest
import torch

from cfx_lib.learn import plots
from cfx_lib.metrics import Value
from cfx_lib.types import CFResult, Cost, Step

N = 3


@pytest.fixture
def x():
    return torch.rand(N, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def result(x):
    chain = range(4, -1, -1)
    steps = [Step(i, 10 * i, x, x.flip(2), torch.full((N,), 1 - i / 5), rows=torch.arange(N)) for i in chain]
    again = torch.tensor([2])
    steps += [Step(i, 10 * i, x[2:], x[2:], torch.tensor([0.25]), rows=again, attempt=1) for i in chain]
    logits = torch.tensor([[2.0, 0.0]] * N)
    flipped = torch.tensor([True, True, False])
    cost = Cost(denoiser_calls=1, classifier_calls=1, seconds=0.1)
    return CFResult(x, x.flip(2), torch.ones(N).long(), logits, -logits, flipped, cost, tuple(steps))


def texts(picture):
    found = [picture.get_suptitle()]
    for ax in picture.axes:
        labels = [ax.get_title(), ax.get_title("left"), ax.get_xlabel(), ax.get_ylabel()]
        found += [*labels, *(t.get_text() for t in ax.texts)]
        found += [
            t.get_text() for t in (*ax.get_yticklabels(), *(ax.get_legend().texts if ax.get_legend() else ()))
        ]
    return [t for t in found if t]


def shown_images(picture):
    return [ax.images[0].get_array() for ax in picture.axes if ax.images]


def test_image_grid_shows_every_image_with_crisp_pixels(x):
    picture = plots.image_grid(x, titles=["a", "b", "c"], columns=2, row_labels=["up", "down"], title="Faces")
    assert len(shown_images(picture)) == N
    assert {"a", "b", "c", "up", "down", "Faces"} <= set(texts(picture))
    assert all(ax.images[0].get_interpolation() == "nearest" for ax in picture.axes if ax.images)
    assert np.allclose(shown_images(picture)[1], (x[1].permute(1, 2, 0) + 1) / 2)


def test_pictures_are_png_of_the_same_bytes_and_three_by_three(x):
    small = torch.zeros(1, 3, 64, 64)
    picture = plots.image_grid(small)
    data, size = picture._repr_png_()
    assert data.startswith(b"\x89PNG") and data == plots.image_grid(small).png()
    assert plots.image_grid(small, titles=["P = 0.1"], title="Faces").alt == "figure: Faces; P = 0.1"
    assert size["alt"] and size["width"] == round(picture.get_figwidth() * 100)
    box = picture.axes[0].get_window_extent()
    assert box.width * 150 / picture.dpi == pytest.approx(192, abs=0.5)


def test_one_channel_and_single_images_and_other_ranges():
    assert plots.to_pixels(torch.zeros(2, 1, 4, 4)).shape == (2, 4, 4, 3)
    assert plots.to_pixels(torch.zeros(3, 4, 4)).shape == (1, 4, 4, 3)
    assert plots.to_pixels(np.full((4, 4), 0.5), (0, 1)).mean() == 0.5
    assert plots.to_pixels(torch.full((1, 1, 2, 2), 7.0)).max() == 1


def test_nan_is_visible():
    broken = torch.zeros(1, 3, 2, 2)
    broken[0, 1, 0, 0] = torch.nan
    assert plots.to_pixels(broken)[0, 0, 0].tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: plots.image_grid(torch.zeros(2, 4, 8, 8)), "C = 1 or 3"),
        (lambda: plots.image_grid(torch.zeros(0, 3, 8, 8)), "no image"),
        (
            lambda: plots.image_grid(torch.zeros(2, 3, 8, 8), titles=["one"]),
            "titles has 1 entries for 2 places",
        ),
        (lambda: plots.trajectory_strip([]), "record=True"),
        (lambda: plots.probability_curve([]), "record=True"),
    ],
)
def test_what_cannot_be_shown_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_image_rows_of_different_lengths(x):
    picture = plots.image_rows({"input": x, "two": x[:2]}, titles={"two": ["p", "q"]})
    assert len(shown_images(picture)) == 5
    assert {"input", "two", "p", "q"} <= set(texts(picture))


def test_counterfactual_figure_has_its_rows_and_maps(x):
    x_cf = x.clone()
    x_cf[:, :, 0, 0] += 0.5
    picture = plots.counterfactual_figure(
        x, x_cf, x, p_before=torch.full((N,), 0.1), p_after=torch.full((N,), 0.9), target_name="smile",
        flipped=torch.tensor([True, False, True]), found=torch.tensor([True, True, False]),
    )  # fmt: skip
    said = texts(picture)
    assert "P(smile) = 0.10" in said and "✘ P(smile) = 0.90" in said and said.count("none found") == 2
    assert {
        "input",
        "counterfactual",
        "true\ncounterfactual",
        "change",
        "true change",
        "mean |change|",
    } <= set(said)
    change = plots.difference(x, x_cf)
    assert change.shape == (N, 16, 16) and np.isclose(change[:, 0, 0], 0.5, atol=1e-6).all()
    assert np.count_nonzero(change > 1e-6) == N


def test_a_result_is_drawn_with_the_probability_of_its_target(result):
    said = texts(plots.explained(result, images=[0, 2], target_name="old"))
    assert said.count("P(old) = 0.12") == 2 and "✔ P(old) = 0.88" in said and "✘ P(old) = 0.88" in said


def test_trajectory_shows_the_last_attempt_of_its_image(result):
    assert "P = 1.00" in texts(plots.trajectory_strip(result, 0, n=3))
    said = texts(plots.trajectory_strip(result, 2))
    assert said.count("P = 0.25") == 5 and "t = 40" in said
    assert "P = 0.20" in texts(plots.trajectory_strip(result, 2, attempt=0))
    with pytest.raises(ValueError, match="image 7"):
        plots.trajectory_strip(result, 7)


def test_probability_curve_has_one_line_an_image_and_the_mean(result):
    ax = plots.probability_curve(result).axes[0]
    assert len(ax.lines) == N + 2 and ax.get_ylabel() == "P(target) of the clean image"


def test_steps_have_whole_numbers_on_their_axis():
    ax = plots.curve({"": ([0, 1, 2, 3], [1.0, 2.0, 0.0, 1.0])}, xlabel="step", ylabel="y").axes[0]
    assert all(float(tick).is_integer() for tick in ax.get_xticks())
    ax = plots.curve({"": ([0.0, 0.25, 0.5], [1.0, 2.0, 0.0])}, xlabel="alpha_bar", ylabel="y").axes[0]
    assert not all(float(tick).is_integer() for tick in ax.get_xticks())


def test_curve_takes_every_form():
    values = [Value(0.5, 0.4, 0.6, 10), Value(0.7, 0.6, 0.9, 10)]
    picture = plots.curve(
        {"plain": [1, 2, 3], "pair": ([0, 2], torch.tensor([1.0, 2.0])), "values": ([1, 2], values),
         "band": ([1, 2], [1, 1], [0, 0], [2, 2])},
        xlabel="step", ylabel="rate", title="T", hlines={"bound": 0.3},
    )  # fmt: skip
    ax = picture.axes[0]
    assert [t.get_text() for t in ax.get_legend().texts] == ["plain", "pair", "values", "band"]
    assert len(ax.collections) == 2 and {"step", "rate", "T", "bound"} <= set(texts(picture))
    assert len({line.get_color() for line in ax.lines[:4]}) == 4
    assert len({str(line.get_linestyle()) for line in ax.lines[:4]}) == 4


def test_interval_bars_leave_missing_numbers_blank():
    rows = [("full", 0.98, Value(0.95, 0.9, 0.99, 64)), ("none", None, None), ("one", 0.4, 0.5)]
    rows += [("undefined", None, Value(0, 0, 0, 0))]
    picture = plots.interval_bars(rows, xlabel="flip rate", title="Table")
    ax = picture.axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["full", "none", "one", "undefined"]
    marks = [line for line in ax.lines if line.get_marker() in "oD" and len(line.get_xdata())]
    assert sorted(float(line.get_xdata()[0]) for line in marks)[:4] == [0.4, 0.5, 0.95, 0.98]
    picture.png()


def test_histogram_and_losses():
    xs = np.linspace(-3, 3, 50)
    picture = plots.histogram(
        {"a": torch.randn(100), "b": torch.randn(50)}, xlabel="v", pdf={"exact": (xs, xs**2)}
    )
    assert {"a", "b", "exact", "v", "density"} <= set(texts(picture))
    picture = plots.losses(
        {"train": np.linspace(1, 0, 300), "val": ([0, 100, 200], [1, 0.5, 0.2])}, logy=True
    )
    assert picture.axes[0].get_yscale() == "log"
    assert plots._smooth(np.ones(500), 0.98) == pytest.approx(1)
    assert list(plots._smooth(np.array([3.0, 1.0]), 0.98)) == [3, 1]


def test_the_readers_matplotlib_settings_are_left_alone(x):
    before = dict(mpl.rcParams)
    plots.curve({"a": [1, 2]}, xlabel="x", ylabel="y")
    assert dict(mpl.rcParams) == before


def test_palette_survives_colour_blindness():
    """Machado 2009, deuteranopia and protanopia at full strength: any two of the first six stay apart."""
    blind = {
        "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    }  # fmt: skip
    colours = np.array([mpl.colors.to_rgb(c) for c in plots.PALETTE[:6]])
    for matrix in blind.values():
        seen = np.clip((colours**2.2) @ np.array(matrix).T, 0, 1) ** (1 / 2.2)
        apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1)[~np.eye(6, dtype=bool)]
        assert apart.min() > 0.12
