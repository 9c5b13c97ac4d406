"""Batches that fit the memory: halved where they do not, with the same explanations."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from toys import Brightness, GaussianDenoiser, images

from cfx_lib import DiME
from cfx_lib.batching import explain_in_batches, join, largest_batch
from cfx_lib.types import CFResult, Cost


@dataclass(frozen=True)
class Limited:
    """A method that runs out of memory with more than `fits` images, and notes what it was given."""

    method: Any
    fits: int
    tried: list
    mask: Any = None

    def explain(self, x, target, **options):
        self.tried.append(len(x))
        if len(x) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        if self.mask is not None:
            assert len(self.mask) == len(x)
            return replace(self.method, mask=self.mask).explain(x, target, **options)
        return self.method.explain(x, target, **options)


def dime(**changes):
    settings = dict(steps=6, start=3, lambda_c=(1.0, 4.0), lambda_p=0.0, inner="one-step")
    return DiME(GaussianDenoiser(), Brightness(), **settings | changes)


def test_the_largest_batch_is_found_by_halving():
    tried = []

    def run(n):
        tried.append(n)
        if n > 3:
            raise torch.OutOfMemoryError("full")

    with pytest.warns(
        UserWarning, match="memory ran out with (12 images; going on with 6|6 images; going on with 3)"
    ):
        assert largest_batch(run, 12) == 3
    assert tried == [12, 6, 3] and largest_batch(run, 2) == 2


def test_one_image_that_does_not_fit_says_what_to_do():
    def run(n):
        raise torch.OutOfMemoryError("full")

    with (
        pytest.warns(UserWarning),
        pytest.raises(torch.OutOfMemoryError, match="single image.*bf16.*checkpointing"),
    ):
        largest_batch(run, 4)
    with pytest.raises(ValueError, match="n = 0; expected the number of images"):
        largest_batch(run, 0)


def test_other_errors_pass_through():
    def run(n):
        raise RuntimeError("size mismatch")

    with pytest.raises(RuntimeError, match="size mismatch"):
        largest_batch(run, 4)


def test_out_of_memory_halves_the_batch_and_changes_nothing_else():
    x, target, tried = images(7), torch.tensor([0, 1, 0, 1, 0, 1, 0]), []
    whole = dime().explain(x, target, seed=3, record=True, progress=False)
    with pytest.warns(UserWarning, match="going on with"):
        cut = explain_in_batches(Limited(dime(), 2, tried), x, target, seed=3, record=True, progress=False)
    assert tried == [7, 3, 1, 1, 1, 1, 1, 1, 1] and cut.extra["batches"] == [1] * 7
    for name in ("x", "x_cf", "target", "logits_before", "logits_after", "flipped"):
        assert torch.allclose(getattr(cut, name).float(), getattr(whole, name).float(), atol=1e-6), name
    assert torch.equal(cut.extra["lambda_c"], whole.extra["lambda_c"])
    assert cut.extra["perceptual"] == whole.extra["perceptual"]
    assert cut.cost.denoiser_calls == whole.cost.denoiser_calls
    first = {
        k: z
        for step in whole.steps
        if step.i == 2 and step.attempt == 0
        for k, z in zip(step.rows.tolist(), step.z)
    }
    again = {
        k: z
        for step in cut.steps
        if step.i == 2 and step.attempt == 0
        for k, z in zip(step.rows.tolist(), step.z)
    }
    assert set(again) == set(range(7)) and all(torch.allclose(again[k], first[k], atol=1e-6) for k in first)


def test_batches_of_a_given_size_and_a_mask_an_image():
    x, target, tried = images(5), torch.tensor([1, 0, 1, 0, 1]), []
    mask = torch.zeros(5, 1, 8, 8)
    mask[3, :, :4] = 1
    whole = dime(mask=mask).explain(x, target, progress=False)
    cut = explain_in_batches(Limited(dime(), 9, tried, mask), x, target, batch=2, progress=False)
    assert tried == [2, 2, 1] and torch.allclose(cut.x_cf, whole.x_cf, atol=1e-6)
    assert torch.equal(cut.x_cf[0], x[0]) and not torch.equal(cut.x_cf[3], x[3])


def test_a_saved_joined_result_comes_back(tmp_path):
    x, target = images(3), torch.tensor([1, 0, 1])
    result = explain_in_batches(dime(), x, target, batch=2, progress=False)
    assert torch.equal(CFResult.load(result.save(tmp_path)).x_cf, result.x_cf)


def test_entries_of_extra_are_joined_by_what_they_are():
    def part(n, calls, name, **more):
        x = torch.zeros(n, 1, 2, 2)
        labels = torch.zeros(n, dtype=torch.long)
        extra = {
            "predict_calls": calls,
            "name": name,
            "row": torch.full((n,), calls),
            "deep": {"a": torch.ones(n)},
        }
        return CFResult(x, x, labels, None, None, labels.bool(), Cost(n, n, 1.0), None, extra | more)

    joined = join([part(2, 3, "net", other=1, said=["a", "b"]), part(1, 4, "net", other=2, said=["c"])])
    assert joined.extra["predict_calls"] == 7 and joined.extra["name"] == "net"
    assert joined.extra["row"].tolist() == [3, 3, 4] and joined.extra["deep"]["a"].tolist() == [1, 1, 1]
    assert joined.extra["other"] == [1, 2] and joined.cost.denoiser_calls == 3 and joined.steps is None
    assert joined.logits_before is None and joined.extra["said"] == ["a", "b", "c"]
    with pytest.raises(ValueError, match="no results to join"):
        join([])


def test_what_does_not_fit_is_refused_before_computing():
    method = Limited(dime(), 9, [])
    with pytest.raises(ValueError, match="batch = 0; expected at least 1 image"):
        explain_in_batches(method, images(2), torch.tensor([0, 1]), batch=0)
    with pytest.raises(ValueError, match="target has shape"):
        explain_in_batches(method, images(2), torch.tensor([0]))
    assert method.tried == []
