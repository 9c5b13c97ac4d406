"""The networks that metrics look through: who is it (identity), what is alike without any label (SimSiam), and autoencoders.

The trunk of the perceptual distance is an attribute classifier; its linear weights are calibrated in `perceptual.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfx_lib.train import classifier
from cfx_lib.train.loop import BatchFn, LossFn
from cfx_lib.worlds import personas

# ---------------------------------------------------------------------------------------------------- views


def crop(x: Tensor, generator: torch.Generator, low: float, high: float = 1.0) -> Tensor:
    """Squares of a share of the image's area in [low, high] at random places, resized back; half of them mirrored."""
    n = len(x)
    side = (low + (high - low) * torch.rand(n, generator=generator)).sqrt()
    centre = (1 - side).abs() * (2 * torch.rand(2, n, generator=generator) - 1)
    mirrored = 1 - 2 * torch.randint(2, (n,), generator=generator)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, 0, 2], theta[:, 1, 2] = side * mirrored, side, *centre
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def recolour(x: Tensor, generator: torch.Generator, amount: float, grey: float = 0.0) -> Tensor:
    """Gain a channel, saturation, brightness within `amount`; a share `grey` of the images loses its colours."""

    def draw(*shape: int) -> Tensor:
        return amount * (2 * torch.rand(len(x), *shape, 1, 1, generator=generator) - 1)

    mean = x.mean(1, keepdim=True)
    saturation = (1 + 2 * draw(1)) * (torch.rand(len(x), 1, 1, 1, generator=generator) >= grey)
    return (mean + saturation * (x - mean)) * (1 + draw(3)) + draw(1)


def degrade(x: Tensor, generator: torch.Generator, sigma: float, blurred: float) -> Tensor:
    """A share `blurred` of the images smoothed (3x3 binomial, partly or wholly), then noise up to `sigma`."""
    kernel = torch.tensor([1.0, 2.0, 1.0])
    kernel = (kernel[:, None] * kernel / 16).expand(x.shape[1], 1, 3, 3).contiguous()
    smooth = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, groups=x.shape[1])
    weight, chosen, level = torch.rand(3, len(x), 1, 1, 1, generator=generator)
    x = torch.lerp(x, smooth, weight * (chosen < blurred))
    return x + sigma * level * torch.randn(x.shape, generator=generator)


def light_view(x: Tensor, generator: torch.Generator) -> Tensor:
    """A view that keeps who it is: little crops and mirroring, colours within 5 %, noise up to 0.25."""
    return degrade(recolour(crop(x, generator, 0.85, 1.1), generator, 0.05), generator, 0.25, 0.3)


def simsiam_view(x: Tensor, generator: torch.Generator) -> Tensor:
    """Chen and He 2021, sec. 3, milder for drawings: crops of 70 % and more, colours within 8 %, blur, noise.

    Stronger crops and colours leave nothing of hair and skin that two views share.
    """
    return degrade(recolour(crop(x, generator, 0.7), generator, 0.08), generator, 0.25, 0.5)


def trunk_view(x: Tensor, generator: torch.Generator) -> Tensor:
    """A view whose image quality is untouched, since a trunk must see noise and blur: crops, mirroring, colours, a little noise."""
    return degrade(recolour(crop(x, generator, 0.85, 1.1), generator, 0.1), generator, 0.05, 0.0)


def attribute_batches(regression: tuple[str, ...]) -> BatchFn:
    """Views of random faces, all attributes (N,20) and the regressed factors (N,R)."""
    faces = classifier.labelled_batches("train", personas.ATTRIBUTES, regression, augmented=False)

    def draw(generator: torch.Generator, size: int) -> tuple[Tensor, ...]:
        x, *labels = faces(generator, size)
        return trunk_view(x, generator).contiguous(memory_format=torch.channels_last), *labels

    return draw


# ---------------------------------------------------------------------------------------------------- identity

CLEAR_AGE = 0.7  # above it hair is at least 78 % silver: its colour cannot be told


def persons(factors: personas.Factors) -> tuple[Tensor, Tensor]:
    """Who each face is, as far as it can be seen: codes (N,4) of skin, hair, facial hair, hair colour; clear (N,) bool.

    The colour is "hidden" (a code of its own) where there is neither hair nor beard. `clear` says that the hair has not yet
    turned silver: else two faces that differ only in the nominal colour cannot be told apart, nor be said to be one.
    """
    skin, hair, facial, colour = (
        np.array([personas.DISCRETE[name].index(v) for v in factors[name]])
        for name in ("skin", "hair", "facial_hair", "hair_color")
    )
    seen = ~np.isin(factors["hair"], ("bald", "beanie")) | (factors["facial_hair"] != "none")
    colour = np.where(seen, colour, len(personas.DISCRETE["hair_color"]))
    codes = torch.from_numpy(np.stack([skin, hair, facial, colour], 1))
    return codes, torch.from_numpy(factors["age"] < CLEAR_AGE)


def relation(codes: Tensor, clear: Tensor) -> tuple[Tensor, Tensor]:
    """Of each pair of faces: is it the same person, are they surely different: (N,N) bool, both False where undecidable."""
    equal = codes[:, None] == codes
    same = equal.all(2)
    unsure = equal[..., :3].all(2) & ~same & ~(clear[:, None] & clear)
    return same, ~same & ~unsure


def contrastive_loss(z: Tensor, same: Tensor, different: Tensor, temperature: float = 0.1) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020, Eq. 2) of embeddings z (N,D), with undecidable pairs left out.

    L_i = -1/|P(i)| sum_{p in P(i)} log(exp(z_i.z_p / temperature) / sum_{a in A(i)} exp(z_i.z_a / temperature)), z
    normalised; P(i): the other images of the same person, A(i): P(i) and all that surely show another one.
    """
    z = F.normalize(z.float(), dim=1)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    positive = same & ~itself
    logits = (z @ z.T / temperature).masked_fill(~(positive | different), -torch.inf)
    log_share = logits - logits.logsumexp(1, keepdim=True)
    count = positive.sum(1)
    each = -log_share.masked_fill(~positive, 0).sum(1) / count.clamp(min=1)
    return each[count > 0].mean()


def identity_loss(
    model: nn.Module, generator: torch.Generator, x: Tensor, codes: Tensor, clear: Tensor
) -> Tensor:
    return contrastive_loss(model(x), *relation(codes, clear))


def identity_batches(views: int = 4) -> BatchFn:
    """Batches of `size / views` persons with `views` faces each: half of the persons are drawn by chance, the others
    differ from them in one respect only. Images (N,3,H,W), codes (N,4), clear (N,)."""
    images, factors = personas.load_uint8("train")
    codes, clear = persons(factors)
    groups, group_of = torch.unique(codes, dim=0, return_inverse=True)
    members = [torch.nonzero(group_of == k).flatten() for k in range(len(groups))]
    near = [torch.nonzero((groups != g).sum(1) == 1).flatten() for g in groups]

    def pick(choice: Tensor, n: int, generator: torch.Generator) -> Tensor:
        return choice[torch.randint(len(choice), (n,), generator=generator)]

    def draw(generator: torch.Generator, size: int) -> tuple[Tensor, ...]:
        half = max(1, size // views // 2)
        chosen = pick(group_of, half, generator).tolist()
        chosen += [int(pick(near[g], 1, generator)) if len(near[g]) else g for g in chosen]
        rows = torch.cat([pick(members[g], views, generator) for g in chosen])
        x = light_view(personas.to_tensor(images[rows.numpy()]), generator)
        return x.contiguous(memory_format=torch.channels_last), codes[rows], clear[rows]

    return draw


# ---------------------------------------------------------------------------------------------------- SimSiam


PREDICTOR_PACE = 10.0


class SimSiam(nn.Module):
    """Chen and He 2021: an encoder f and a predictor h (an MLP). `forward(x)` gives (h(f(x)), f(x)).

    The buffer `spread` follows the standard deviation of f's normalised outputs: 1/sqrt(D) where they fill the sphere, 0
    where they have collapsed to one point.
    """

    def __init__(self, encoder: nn.Module, dim: int, hidden: int) -> None:
        super().__init__()
        self.encoder = encoder
        first = [nn.Linear(dim, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)]
        self.predictor = nn.Sequential(*first, nn.Linear(hidden, dim))
        self.register_buffer("spread", torch.zeros(()))

    def parameter_groups(self) -> list[dict]:
        """The predictor learns ten times faster: near its optimum it keeps more dimensions alive (Tian et al. 2021)."""
        return [
            {"params": list(self.encoder.parameters())},
            {"params": list(self.predictor.parameters()), "pace": PREDICTOR_PACE},
        ]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(x)
        if self.training:
            self.spread.lerp_(spread(z.detach()), 0.05)
        return self.predictor(z), z


def spread(z: Tensor) -> Tensor:
    """The mean over dimensions of the standard deviation of normalised outputs (N,D): Chen and He 2021, sec. 4.1."""
    return F.normalize(z.float(), dim=1).std(0).mean()


def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    """D(p, stop-gradient(z)) = -cos(p, z), in the mean: Chen and He 2021, Eq. 1 and 3."""
    return -F.cosine_similarity(p.float(), z.detach().float(), dim=1).mean()


def simsiam_loss(model: nn.Module, generator: torch.Generator, first: Tensor, second: Tensor) -> Tensor:
    """Chen and He 2021, Eq. 4: D(p1, z2)/2 + D(p2, z1)/2, plus 1, so that it lies in [0, 2]."""
    (p1, z1), (p2, z2) = model(first), model(second)
    return 1 + negative_cosine(p1, z2) / 2 + negative_cosine(p2, z1) / 2


def two_views() -> BatchFn:
    """Two views of each of N random faces; nothing else is known of them."""
    images = personas.load_uint8("train")[0]

    def draw(generator: torch.Generator, size: int) -> tuple[Tensor, ...]:
        rows = torch.randint(len(images), (size,), generator=generator)
        x = personas.to_tensor(images[rows.numpy()])
        return tuple(
            simsiam_view(x, generator).contiguous(memory_format=torch.channels_last) for _ in range(2)
        )

    return draw


# ---------------------------------------------------------------------------------------------------- autoencoders


def reconstruction_loss(names: tuple[str, ...]) -> LossFn:
    """The mean squared error of the global autoencoder and of those of each face's own classes; one image, 1 + A networks."""

    def loss(model: nn.Module, generator: torch.Generator, x: Tensor, labels: Tensor) -> Tensor:
        errors = [F.mse_loss(model(x), x)]
        errors += [F.mse_loss(model(x, name, labels[:, k]), x) for k, name in enumerate(names)]
        return torch.stack(errors).mean()

    return loss


def class_batches(names: tuple[str, ...]) -> BatchFn:
    """Random faces and their classes (N, A) long."""
    images, factors = personas.load_uint8("train")
    labels = personas.attributes(factors)[:, [personas.ATTRIBUTES.index(n) for n in names]].long()

    def draw(generator: torch.Generator, size: int) -> tuple[Tensor, ...]:
        rows = torch.randint(len(images), (size,), generator=generator)
        return personas.to_tensor(images[rows.numpy()]), labels[rows]

    return draw


def random_encoder(make: Callable[[], nn.Module], x: Tensor, seed: int = 0) -> nn.Module:
    """A network with random weights whose batch norms know the data: what a trained one is compared with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make().train()
    with torch.no_grad():
        for _ in range(5):
            for part in x.split(100):
                model(part)
    return model.eval().requires_grad_(False)
