"""Toys whose behaviour is known exactly: a denoiser, classifiers and images for the tests of the methods."""

import torch
from torch import nn

from cfx_lib.diffusion import linear_betas


class GaussianDenoiser:
    """The exact denoiser of pixels ~ N(0, 1/4), as a plain callable; every pixel stands for itself."""

    learned_range = False

    def __init__(self, T=100):
        self.betas = linear_betas(T)
        self.alpha_bar = torch.cumprod(1 - self.betas, 0).float()

    def __call__(self, x, t):
        alpha_bar = self.alpha_bar[t][:, None, None, None]
        return (1 - alpha_bar).sqrt() * x / (alpha_bar / 4 + 1 - alpha_bar)


class Untouched(GaussianDenoiser):
    """A denoiser of 8x8 colour images that must not be reached."""

    sample_size, channels = 8, 3

    def __call__(self, x, t):
        raise AssertionError("the denoiser was called")


class Brightness(nn.Module):
    """Two classes: dark (0) and bright (1) by the mean of the image; the logit's slope is `slope`."""

    num_classes = 2

    def __init__(self, slope=20.0):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, x):
        logit = self.slope * x.mean((1, 2, 3))
        return torch.stack([-logit / 2, logit / 2], 1)


class Small(nn.Module):
    """A random smooth classifier of `num_classes` classes, the same for the same seed."""

    def __init__(self, seed=0, num_classes=3, sharpness=8.0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv, self.fc = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, num_classes)
        self.num_classes, self.sharpness = num_classes, sharpness

    def forward(self, x):
        return self.sharpness * self.fc(torch.tanh(self.conv(x)).mean((2, 3)))


class Broken(nn.Module):
    """`inner`, whose gradient is NaN for images of kind 1 and 0 for those of kind 2; its logits are the same."""

    def __init__(self, inner, kind):
        super().__init__()
        self.inner, self.kind, self.num_classes = inner, kind, inner.num_classes

    def forward(self, x):
        kind, logits = self.kind.repeat(len(x) // len(self.kind)), self.inner(x)
        nan = kind.eq(1).nonzero().squeeze(1)
        zero = (x[nan] - x[nan]).sqrt().sum((1, 2, 3))  # 0, with the gradient inf - inf
        logits = logits.index_add(0, nan, zero[:, None].expand(-1, logits.shape[1]))
        return torch.where(kind[:, None] == 2, logits.detach() + 0 * x.sum((1, 2, 3))[:, None], logits)


def images(n=3, size=8, seed=0):
    """Rather dark images (n,3,size,size) in [-1,1], each a little brighter than the one before."""
    x = torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed)) / 2
    brightness = -0.2 + 0.04 * torch.arange(n)[:, None, None, None]
    return (x - x.mean((1, 2, 3), keepdim=True) + brightness).clamp(-1, 1)


def bright(n=3):
    """The target "bright" for n images."""
    return torch.ones(n, dtype=torch.long)
