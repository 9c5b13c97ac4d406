"""A small CFResult to measure, with everything in it chosen by the test."""

import pytest
import torch

from cfx_lib.types import CFResult, Cost


@pytest.fixture
def make_result():
    def make(n=6, seed=0, flipped=None, target=None, x=None, x_cf=None, cost=None, size=8):
        random = torch.Generator().manual_seed(seed)
        x = torch.rand(n, 3, size, size, generator=random) * 2 - 1 if x is None else x
        x_cf = torch.rand(x.shape, generator=random) * 2 - 1 if x_cf is None else x_cf
        n = len(x)
        flipped = (
            torch.rand(n, generator=random) < 0.7 if flipped is None else torch.as_tensor(flipped).bool()
        )
        target = torch.randint(0, 2, (n,), generator=random) if target is None else torch.as_tensor(target)
        logits = torch.randn(n, 2, generator=random)
        cost = cost or Cost(denoiser_calls=10 * n, classifier_calls=2 * n, seconds=0.5 * n)
        return CFResult(x, x_cf, target, logits, logits.flip(1), flipped, cost)

    return make
