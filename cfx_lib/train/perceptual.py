"""LPIPS weights for a trunk: calibrated on triplets of faces whose right order is known because we made them.

Zhang et al. 2018 ask people which of two distorted patches is nearer to the reference. Here the same distortion is applied
weaker and stronger, so that the weaker one is the nearer one by construction. In one further kind ("other") the near image
is the same drawing, moved by a pixel and a little brighter or darker, the far one has another expression, age or eyewear.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cfx_lib.worlds import personas
from cfx_lib.zoo.features import PerceptualTrunk

EVEN = 0.01
Change = Callable[[Tensor], Tensor]  # amount (N,) in (0, 1] -> images

# ---------------------------------------------------------------------------------------------------- triplets


def _uniform(generator: torch.Generator, *shape: int) -> Tensor:
    return 2 * torch.rand(*shape, generator=generator) - 1


def blur(x: Tensor, factors: personas.Factors, generator: torch.Generator) -> Change:
    """Gaussian blur, standard deviation up to 2.5 pixels."""

    def change(amount: Tensor) -> Tensor:
        n, c, h, w = x.shape
        kernel = torch.exp(-((torch.arange(-7.0, 8.0) / (2.5 * amount[:, None])) ** 2) / 2)
        kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(c, 0)
        z = F.pad(x, (7, 7, 7, 7), mode="replicate").reshape(1, n * c, h + 14, w + 14)
        z = F.conv2d(z, kernel[:, None, :, None], groups=n * c)
        return F.conv2d(z, kernel[:, None, None, :], groups=n * c).reshape(n, c, h, w)

    return change


def noise(x: Tensor, factors: personas.Factors, generator: torch.Generator) -> Change:
    """Gaussian noise, standard deviation up to 0.5; each image has its own."""
    return lambda amount: x + 0.5 * amount.view(-1, 1, 1, 1) * torch.randn(x.shape, generator=generator)


def shift(x: Tensor, factors: personas.Factors, generator: torch.Generator) -> Change:
    """A translation of up to 5 pixels in one direction."""
    direction = F.normalize(torch.randn(len(x), 2, generator=generator), dim=1)

    def change(amount: Tensor) -> Tensor:
        theta = torch.eye(2, 3).repeat(len(x), 1, 1)
        theta[:, :, 2] = direction * amount[:, None] * 5 * 2 / x.shape[-1]
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, padding_mode="border", align_corners=False)

    return change


def colour(x: Tensor, factors: personas.Factors, generator: torch.Generator) -> Change:
    """Gain and offset of each channel, up to 0.4, in one direction."""
    gain, offset = (0.4 * _uniform(generator, len(x), 3, 1, 1) for _ in range(2))

    def change(amount: Tensor) -> Tensor:
        a = amount.view(-1, 1, 1, 1)
        return x * (1 + a * gain) + a * offset

    return change


def _factor(name: str) -> Callable[..., Change]:
    low, high = personas.CONTINUOUS[name]

    def moved(x: Tensor, factors: personas.Factors, generator: torch.Generator) -> Change:
        start = torch.from_numpy(factors[name])
        end = torch.where(start > (low + high) / 2, low, high)  # the further end: the longest way

        def change(amount: Tensor) -> Tensor:
            return personas.render(factors.replace(**{name: (start + amount * (end - start)).numpy()}))

        return change

    moved.__doc__ = f"The factor {name} moved towards the further end of its range, up to that end."
    return moved


def paste(x: Tensor, factors: personas.Factors, generator: torch.Generator) -> Change:
    """A square of another face, up to 32 pixels wide, at a random place."""
    other = x.roll(1, 0)
    centre = x.shape[-1] * (0.25 + 0.5 * torch.rand(len(x), 2, 1, generator=generator))
    place = torch.arange(x.shape[-1]) + 0.5

    def change(amount: Tensor) -> Tensor:
        inside = (place - centre).abs() <= 16 * amount.view(-1, 1, 1)  # (N, 2, side): rows, columns
        return torch.where(
            inside[:, 0, :, None] & inside[:, 1, None, :], other.movedim(1, 0), x.movedim(1, 0)
        ).movedim(0, 1)

    return change


KINDS = {
    "blur": blur,
    "noise": noise,
    "shift": shift,
    "colour": colour,
    "smile": _factor("smile"),
    "age": _factor("age"),
    "paste": paste,
}
OTHER = "other"


def triplets(
    kind: str, x: Tensor, factors: personas.Factors, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """For references x (N,3,H,W) the nearer and the farther image, each (N,3,H,W) in [-1,1]."""
    if kind == OTHER:
        near, far = _same_drawing(x, generator), _other_state(factors, generator)
    else:
        strong = 0.3 + 0.7 * torch.rand(len(x), generator=generator)
        weak = strong * (0.5 + 0.45 * torch.rand(len(x), generator=generator))  # at most 95 % of it
        change = KINDS[kind](x, factors, generator)
        near, far = change(weak), change(strong)
    return near.clamp(-1, 1).float(), far.clamp(-1, 1).float()


def _same_drawing(x: Tensor, generator: torch.Generator) -> Tensor:
    """Moved by 0.5 to 1.5 pixels, brightness changed by up to 0.1."""
    moved = shift(x, None, generator)((0.5 + torch.rand(len(x), generator=generator)) / 5)
    return moved + 0.1 * _uniform(generator, len(x), 1, 1, 1)


def _other_state(factors: personas.Factors, generator: torch.Generator) -> Tensor:
    """By turns: the expression at the other end, the age at the other end, other eyewear."""
    turn = torch.arange(len(factors)).numpy() % 3
    smile = torch.where(torch.from_numpy(factors["smile"]) > 0, -0.8, 0.8).double().numpy()
    age = torch.where(torch.from_numpy(factors["age"]) > 0.5, 0.1, 0.9).double().numpy()
    changed = factors.replace(
        smile=[s if t == 0 else f for s, f, t in zip(smile, factors["smile"], turn, strict=True)],
        age=[a if t == 1 else f for a, f, t in zip(age, factors["age"], turn, strict=True)],
        eyewear=[
            f if t < 2 else ("eyeglasses" if f == "none" else "none")
            for f, t in zip(factors["eyewear"], turn, strict=True)
        ],
    )
    return personas.render(changed)


# ---------------------------------------------------------------------------------------------------- distances


@torch.no_grad()
def channel_distances(trunk: PerceptualTrunk, x: Tensor, y: Tensor, batch: int = 100) -> Tensor:
    """(N, C_1 + ... + C_L): for each channel the spatial mean of the squared difference of the normalised maps.

    LPIPS is their sum weighted by `trunk.weights`: linear in the weights, so that these can be fitted to stored numbers.
    """
    out = []
    for a, b in zip(x.split(batch), y.split(batch), strict=True):
        pairs = zip(trunk(a), trunk(b), strict=True)
        parts = [
            (F.normalize(m, dim=1, eps=1e-10) - F.normalize(k, dim=1, eps=1e-10)).square().mean((2, 3))
            for m, k in pairs
        ]
        out.append(torch.cat(parts, 1))
    return torch.cat(out)


def ranking_loss(weights: Tensor, near: Tensor, far: Tensor, sharpness: float = 10.0) -> Tensor:
    """Cross-entropy of "near is nearer" under P = sigmoid(sharpness log(d_far / d_near)); the scale of w does not matter."""
    ratio = (far @ weights).clamp(min=1e-12).log() - (near @ weights).clamp(min=1e-12).log()
    return F.softplus(-sharpness * ratio).mean()


def fit_weights(near: Tensor, far: Tensor, steps: int = 400, lr: float = 0.03, even: float = EVEN) -> Tensor:
    """Weights (K,) >= 0, of mean 1, that rank the triplets best: near, far (M,K) channel distances.

    Adam from uniform weights on the whole set; after each step negative weights become 0, as Zhang et al. 2018 do. `even`
    weighs the squared deviation from uniform weights: without it most channels end at 0, and the distance no longer sees
    what the triplets do not show.
    """
    weights = torch.ones(near.shape[1], requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=lr)
    for k in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - k / steps)
        optimizer.zero_grad()
        uneven = (weights / weights.mean() - 1).square().mean()
        (ranking_loss(weights, near, far) + even * uneven).backward()
        optimizer.step()
        with torch.no_grad():
            weights.clamp_(min=0)
    return (weights / weights.mean()).detach()


def calibrate(trunk: PerceptualTrunk, n: int = 600, seed: int = 0) -> PerceptualTrunk:
    """The trunk with fitted weights, from `n` training faces a kind.

    Scale: two different faces of the training set are at a mean distance of 1.
    """
    x, factors = personas.load("train", n)
    generator = torch.Generator().manual_seed(seed)
    near, far = [], []
    for kind in (*KINDS, OTHER):
        images = triplets(kind, x, factors, generator)
        near.append(channel_distances(trunk, x, images[0]))
        far.append(channel_distances(trunk, x, images[1]))
    weights = fit_weights(torch.cat(near), torch.cat(far))
    weights = weights / (channel_distances(trunk, x, x.roll(1, 0)) @ weights).mean()
    runner = trunk.runner
    mean, std = runner.mean.flatten().tolist(), runner.std.flatten().tolist()
    return PerceptualTrunk(
        trunk.model, weights.split(list(trunk.channels)), mean, std, trunk.name, trunk.outputs
    )


def choices(near: Tensor, far: Tensor) -> Tensor:
    """Two-alternative forced choice: 1 where the nearer image has the smaller distance, 0.5 for a tie; (N,)."""
    return (near < far).float() + 0.5 * (near == far).float()
