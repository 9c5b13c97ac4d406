"""Costs are divided among images; FLOPs of known operations."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cfx_lib.metrics import cost_per_explanation, costs, measure_flops
from cfx_lib.types import Cost


def test_cost_per_image(make_result):
    first = make_result(n=4, cost=Cost(denoiser_calls=40, classifier_calls=8, seconds=2.0))
    second = make_result(n=2, cost=Cost(denoiser_calls=26, classifier_calls=4, seconds=4.0))
    values = costs([first, second])
    assert values["seconds"].mean == 1.0 and values["denoiser_calls"].mean == 11.0
    assert values["classifier_calls"].mean == 2.0 and values["classifier_calls"].low == 2.0
    assert values["seconds"].n == 2 and 0.5 <= values["seconds"].low <= 1 <= values["seconds"].high <= 2
    assert str(values["flops"]) == "undefined (n=0)"
    assert costs([second, first]) == values


def test_one_run_has_no_interval(make_result):
    value = cost_per_explanation(make_result(n=6, cost=Cost(60, 6, 9.0, flops=6e9)))
    assert str(value) == "1.50 s (n=1, no interval)"
    assert cost_per_explanation(make_result(n=6, cost=Cost(60, 6, 9.0, flops=6e9)), "flops").mean == 1e9


def test_bad_input_is_explained(make_result):
    with pytest.raises(ValueError, match="kind='hours'"):
        cost_per_explanation(make_result(), "hours")
    with pytest.raises(ValueError, match="a CFResult or a list"):
        cost_per_explanation(torch.zeros(3))
    with pytest.raises(ValueError, match="not the result"):
        measure_flops(torch.zeros(3))


def test_flops_of_known_operations():
    linear, conv = nn.Linear(8, 16), nn.Conv2d(3, 5, 3, padding=1)
    assert measure_flops(linear, torch.zeros(4, 8)) == 2 * 4 * 8 * 16
    assert measure_flops(lambda: conv(torch.zeros(2, 3, 6, 6))) == 2 * 2 * 36 * 5 * 3 * 9
    assert measure_flops(lambda: None) == 0


def test_attention_is_counted():
    q = torch.randn(2, 4, 10, 8)
    with torch.no_grad():
        flops = measure_flops(F.scaled_dot_product_attention, q, q, q)
    assert flops == 2 * (2 * 4 * 10 * 10 * 8) * 2  # q k^T and (attention) v


def test_the_kernel_choice_is_restored_after_an_exception():
    before = torch.backends.cuda.flash_sdp_enabled()
    with pytest.raises(RuntimeError, match="stop"):
        measure_flops(_stop)
    assert torch.backends.cuda.flash_sdp_enabled() == before


def _stop():
    raise RuntimeError("stop")
