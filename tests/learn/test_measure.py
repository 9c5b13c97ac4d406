"""The small measurements of the notebooks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cfx_lib.learn import compare, measure, plots
from cfx_lib.learn.compare import Ledger, only, value


class _Brightness:
    """Class 1 is bright."""

    def __call__(self, x: Tensor) -> Tensor:
        mean = x.mean((1, 2, 3))
        return torch.stack([-mean, mean], 1)

    def predict(self, x: Tensor) -> Tensor:
        return self(x).argmax(1)


def test_chance_and_verdicts_speak_of_the_wanted_class():
    x = torch.stack([torch.full((3, 4, 4), 0.8), torch.full((3, 4, 4), -0.8)])
    wanted = torch.tensor([1, 1])
    p = measure.chance(_Brightness(), x, wanted)
    assert p[0] == pytest.approx(torch.sigmoid(torch.tensor(1.6)).item()) and p[0] + p[1] == pytest.approx(1)
    first, second = measure.verdicts(_Brightness(), x, wanted, _Brightness())
    assert first.startswith("C: P=0.83") and first.endswith("oracle: yes") and second.endswith("oracle: no")


def test_smoothness_tells_areas_from_speckle():
    area = torch.zeros(1, 1, 32, 32)
    area[..., 8:24, 8:24] = 1
    speckle = torch.randn(8, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    assert measure.smoothness(area).mean > 0.8
    assert measure.smoothness(speckle).mean == pytest.approx(1 / 5, abs=0.03), (
        "25 independent values in a mean"
    )


def test_amplified_fills_the_scale_of_each_image_or_of_another():
    change = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [1e-3, 5.0]
    ).view(2, 1, 1, 1)
    shown = plots.amplified(change)
    assert shown.abs().amax((1, 2, 3)).tolist() == [1, 1] and torch.equal(shown.sign(), change.sign())
    assert torch.allclose(
        plots.amplified(change / 2, change)[shown.abs() < 1], shown[shown.abs() < 1] / 2, atol=1e-6
    )
    assert torch.equal(plots.amplified(torch.zeros(1, 1, 4, 4)), torch.zeros(1, 1, 4, 4))


def test_rows_are_found_by_the_text_of_their_entries():
    rows = [{"share": 0.2, "who": "a", "x": 1}, {"share": 0.5, "who": "b", "x": 2}]
    assert only(rows, share="0.5") == [rows[1]] and only(rows, who="c") == []
    assert (
        value(rows, "x", who="a") == 1
        and value(rows, "x", who="c") is None
        and value(rows, "y", who="a") is None
    )


def test_a_ledger_says_and_counts_its_claims(capsys):
    ledger = Ledger()
    ledger("Water is wet", "everybody", compare.REPRODUCED)
    assert capsys.readouterr().out == "Water is wet (everybody): **reproduced**.\n"
    quiet = Ledger(aloud=False)
    quiet("Fire is cold", "nobody", compare.NOT_REPRODUCED)
    assert capsys.readouterr().out == ""
    quiet.show()
    assert "**0 reproduced, 1 not reproduced, 0 inconclusive** of 1 claims" in capsys.readouterr().out
    quiet("Fire is hot on a large scale", "nobody", compare.NEEDS_GPU)
    quiet.show()
    said = capsys.readouterr().out
    assert "**0 reproduced, 1 not reproduced, 0 inconclusive, 1 needs a GPU** of 2 claims" in said
