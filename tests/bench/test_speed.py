"""The speed figures: right numbers from small parts, a readable table, clear errors. No time is tested."""

import json

import pytest
import torch
from models import fixture, tiny_classifier, tiny_unet

from cfx_lib import metrics
from cfx_lib.bench import __main__ as command
from cfx_lib.bench import dime_study, results, speed
from cfx_lib.diffusion import linear_betas
from cfx_lib.metrics import Value
from cfx_lib.types import CFResult, Cost


@pytest.fixture
def networks():
    return tiny_unet(linear_betas(1000)), tiny_classifier(fixture("05_dime_trajectory")[0])


def explained(seconds=2.0, n=3):
    x, two = torch.zeros(n, 3, 16, 16), torch.zeros(n, 2)
    flipped = torch.ones(n, dtype=torch.bool)
    return CFResult(x, x, torch.ones(n, dtype=torch.long), two, two, flipped, Cost(30 * n, 4 * n, seconds))


def test_matmul_peak_counts_two_operations_a_multiply_add(monkeypatch):
    monkeypatch.setattr(speed, "_timed", lambda do: 0.5)
    assert speed.matmul_peak(size=10) == 2 * 10**3 / 0.5
    with pytest.raises(ValueError, match="at least 1 expected"):
        speed.matmul_peak(size=0)


@pytest.mark.parametrize("dtype", speed.DTYPES.values())
def test_matmul_peak_is_a_positive_number(dtype):
    assert 0 < speed.matmul_peak(dtype, size=64, repeats=1) < float("inf")


def test_optimal_seconds_is_the_sum_over_both_networks(networks):
    denoiser, classifier = networks
    result = explained()
    alone = speed.optimal_seconds(result, denoiser, classifier, 1e9, float("inf"))
    forward = metrics.measure_flops(denoiser, result.x[:1], torch.zeros(1, dtype=torch.long))
    assert forward > 0 and alone == pytest.approx(90 * forward / 1e9)
    both = speed.optimal_seconds(result, denoiser, classifier, 1e9, 1e9)
    assert both > alone
    # forward and backward of the classifier: more than a forward pass alone
    assert (both - alone) * 1e9 / 12 > metrics.measure_flops(classifier, result.x[:1])


def test_notebook_times_reports_failures_and_goes_on(tmp_path):
    for name, code in (("a_well", "print(1)"), ("b_broken", "raise RuntimeError('broken on purpose')")):
        cell = {
            "cell_type": "code",
            "metadata": {},
            "source": code,
            "outputs": [],
            "execution_count": None,
            "id": name,
        }
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        text = {"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
        (tmp_path / f"{name}.ipynb").write_text(json.dumps(text))
    well, broken = speed.notebook_times(tmp_path)
    assert well["ended"] == "well" and well["seconds"] > 0
    assert "broken on purpose" in broken["ended"]


def test_notebook_times_without_notebooks(tmp_path):
    with pytest.raises(FileNotFoundError, match="make notebooks"):
        next(speed.notebook_times(tmp_path))


def test_inner_chains_compares_with_the_first_on_the_same_faces():
    rows = list(speed.inner_chains(2, 1, ("one-step", "one-step"), steps=8, start=2, lambda_c=(1.0,)))
    assert [row["inner"] for row in rows] == ["one-step", "one-step"]
    for row in rows:
        assert row["flipped, against the first"].mean == 0  # the same method explains the same faces equally
        assert row["times faster"].n == 2 and row["s an explanation"].mean > 0
    assert rows[0]["times faster"].mean == 1
    assert rows[0]["ground-truth error"] == rows[1]["ground-truth error"]
    assert "\n" in speed.as_text(rows[0])


def test_dime_at_paper_settings_prints_every_figure():
    (row,) = speed.dime_at_paper_settings(2, ("fp32",), start=2, lambda_c=(8.0,))
    assert row["denoiser"] == "fp32" and row["batch"] == 2
    assert row["denoiser calls"] >= 2 and row["s an explanation"] > 0
    assert 0 < row["share of peak %"]


def test_rows_can_be_kept_and_read_again(tmp_path):
    rows = [{"inner": "full", "flipped": metrics.flip_rate(torch.tensor([True, False])), "s": 1.5}]
    results.save("bench-inner", rows, folder=tmp_path)
    (row,) = results.load("bench-inner", folder=tmp_path).rows
    assert (row["inner"], row["s"], row["flipped"].n) == ("full", 1.5, 2)
    kept, was = (r["flipped"] for r in (row, rows[0]))
    assert (kept.mean, kept.low, kept.high) == pytest.approx((was.mean, was.low, was.high), rel=1e-8)


def test_text_shows_values_with_their_intervals():
    text = speed.as_text({"flipped": Value(0.5, 0.25, 0.75, 8, unit="%"), "seconds": 12.345678, "n": 3})
    assert text.splitlines() == ["  flipped  50.0 % [25.0, 75.0] (n=8)", "  seconds  12.35", "  n        3"]


def test_command_prints_keeps_and_fails_with_a_failed_notebook(monkeypatch, capsys):
    kept = {}
    monkeypatch.setattr(
        speed, "notebook_times", lambda: iter([{"notebook": "01", "seconds": 1.0, "ended": "well"}])
    )
    monkeypatch.setattr(
        results, "save", lambda name, rows, mode: kept.update({name: rows}) or results.FOLDER / name
    )
    assert command.main(["notebooks", "--save"]) == 0
    assert "01" in capsys.readouterr().out and list(kept) == ["bench-notebooks"]
    monkeypatch.setattr(
        speed, "notebook_times", lambda: iter([{"notebook": "01", "seconds": 1.0, "ended": "Error"}])
    )
    assert command.main(["notebooks"]) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["nope"], "unknown part 'nope'"), (["inner", "--images", "0"], "at least 1")],
)
def test_command_refuses_what_it_does_not_know(arguments, said, capsys):
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert said in capsys.readouterr().err


def test_command_makes_a_study(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(dime_study, "run", lambda *given: asked.append(given))
    assert command.main(["study", "dime", "--only", "dime_main", "--images", "4", "--no-save"]) == 0
    assert command.main(["study", "dime"]) == 0
    assert asked == [(["dime_main"], 4, False), (None, None, True)]
    for wrong, said in (
        (["nope"], "invalid choice"),
        (["dime", "--only", "x"], "dime_main"),
        (["dime", "--images", "1"], "at least 2"),
    ):
        with pytest.raises(SystemExit):
            command.main(["study", *wrong])
        assert said in capsys.readouterr().err
