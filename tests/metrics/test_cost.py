"""Costs are divided among images; FLOPs of known operations; memory of known tensors."""

import threading
import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cfx_lib.metrics import cost_per_explanation, costs, measure_flops
from cfx_lib.metrics.cost import KINDS, measure_peak_memory
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


def test_peak_memory_is_the_largest_of_the_runs(make_result):
    sizes = (3 * 2**20, None, 5 * 2**20)
    runs = [make_result(n=4, seed=k, cost=Cost(4, 4, 1.0, peak_memory=size)) for k, size in enumerate(sizes)]
    value = costs(runs)["peak_memory"]
    assert str(value) == "5.00 MiB (n=2, no interval)" and value.method == "maximum"
    assert cost_per_explanation(runs[::-1], "peak_memory") == value
    assert cost_per_explanation(runs[0], "peak_memory").mean == 3.0
    assert str(cost_per_explanation(runs[1], "peak_memory")) == "undefined (n=0)"
    assert tuple(costs(runs)) == KINDS


def test_no_image_is_undefined(make_result):
    assert str(cost_per_explanation(make_result(n=0, cost=Cost(0, 0, 0.1)))) == "undefined (n=0)"


def test_bad_input_is_explained(make_result):
    with pytest.raises(ValueError, match="kind='hours'"):
        cost_per_explanation(make_result(), "hours")
    with pytest.raises(ValueError, match="a CFResult or a list"):
        cost_per_explanation(torch.zeros(3))
    with pytest.raises(ValueError, match="not the result"):
        measure_flops(torch.zeros(3))
    with pytest.raises(ValueError, match="not the result"):
        measure_peak_memory(torch.zeros(3))
    with pytest.raises(ValueError, match="device=meta"):
        measure_peak_memory(list, device="meta")


def test_flops_of_a_gradient_with_respect_to_the_input():
    linear, x = torch.nn.Linear(8, 16, bias=False), torch.zeros(4, 8, requires_grad=True)
    linear.requires_grad_(False)
    assert measure_flops(lambda: torch.autograd.grad(linear(x).sum(), x)) == 2 * (2 * 4 * 8 * 16)


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


def counted_plainly(fn, *args):
    with FlopCounterMode(display=False) as counter:
        fn(*args)
    return counter.get_total_flops()


@torch.no_grad()
def test_attention_that_a_fused_kernel_hides_is_counted():
    q, expected = torch.randn(2, 4, 10, 8), 2 * (2 * 4 * 10 * 10 * 8) * 2
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        assert measure_flops(F.scaled_dot_product_attention, q, q, q) == expected
        if counted_plainly(F.scaled_dot_product_attention, q, q, q) == expected:
            pytest.skip("this version of PyTorch counts fused attention on a CPU itself")


@torch.no_grad()
def test_the_fused_path_of_the_attention_layer_is_counted():
    layer, x = nn.MultiheadAttention(32, 4, batch_first=True).eval(), torch.randn(2, 10, 32)
    projections, attention = 2 * 4 * (2 * 10 * 32 * 32), 2 * 2 * (2 * 4 * 10 * 10 * 8)
    for need_weights in (False, True):
        found = measure_flops(layer, x, x, x, need_weights=need_weights)
        assert found == projections + attention
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_kernel_choice_is_restored_after_an_exception():
    before = torch.backends.cuda.flash_sdp_enabled()
    with pytest.raises(RuntimeError, match="stop"):
        measure_flops(_stop)
    assert torch.backends.cuda.flash_sdp_enabled() == before and torch.backends.mha.get_fastpath_enabled()


def _stop():
    raise RuntimeError("stop")


MIB = 2**20


def fill(mebibytes):
    full = torch.ones(mebibytes * MIB // 4)
    time.sleep(0.02)
    return full.sum()


def test_peak_memory_of_known_tensors():
    small, large = (measure_peak_memory(fill, size, device="cpu") for size in (1, 96))
    assert 90 * MIB < large < 120 * MIB and 0 <= small < 20 * MIB
    assert (
        90 * MIB < measure_peak_memory(fill, 96, device="cpu") < 120 * MIB
    )  # again, and not from kept blocks


def test_the_watching_thread_ends():
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="stop"):
        measure_peak_memory(_stop, device="cpu")
    assert threading.active_count() == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_peak_memory_on_an_accelerator():
    peak = measure_peak_memory(lambda: torch.ones(24 * MIB, device="cuda").sum())
    assert 96 * MIB <= peak - torch.cuda.memory_allocated() < 100 * MIB
