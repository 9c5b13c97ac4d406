"""Closeness: how much of the image changed. Whether the change is right is the question of `ground_truth`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfx_lib.metrics._inputs import blank, chosen, images, run, spread
from cfx_lib.metrics.backbones import choose, name_of
from cfx_lib.metrics.value import Value, average

if TYPE_CHECKING:
    from cfx_lib.metrics._inputs import Results


def lp_norm(
    x: Tensor | Results,
    x_cf: Tensor | None = None,
    *,
    p: float = 1.0,
    per_pixel: bool = False,
    unit_range: bool = False,
    where: Any = None,
) -> Value:
    """Mean over the images of the p-norm of the change, (sum |x - x_cf|^p)^(1/p) (LDCE, Eq. 18 and 19).

    x, x_cf: (N,C,H,W) in [-1,1], or a CFResult or a list of them. p >= 1.
    per_pixel: the mean instead of the sum inside the root, i.e. Eq. 19 divided by (C*H*W)^(1/p): it does not
    depend on the size of the image. unit_range: measured on images in [0,1], i.e. half as large.
    where: (N,) bool, images that count, or "flipped" for the successful ones of a CFResult; all by default.
    Interval: bootstrap (expanded percentile). Nothing selected: undefined (n=0). ValueError for wrong shapes.
    """
    first, second = images(x, x_cf)
    norms = lp_distance(first, second, p=p, per_pixel=per_pixel) * (0.5 if unit_range else 1.0)
    return average(blank(norms, chosen(where, len(norms), x)))


def lp_norms(
    x: Tensor | Results,
    x_cf: Tensor | None = None,
    *,
    ps: Sequence[float] = (1.0, 1.5, 2.0),
    unit_range: bool = False,
    where: Any = None,
) -> dict[str, Value]:
    """The p-norms of LDCE (Eq. 18 and 19), as sums and per pixel.

    Keys: "L1", "L1.5", "L2", "L1 per pixel", "L1.5 per pixel", "L2 per pixel".
    Arguments, intervals and errors as in `lp_norm`.
    """
    first, second = images(x, x_cf)
    keep, pixels = chosen(where, len(first), x), first[0].numel() if len(first) else 1
    norms = {p: lp_distance(first, second, p=p) * (0.5 if unit_range else 1.0) for p in ps}
    sums = {f"L{p:g}": average(blank(norms[p], keep)) for p in ps}
    return sums | {f"L{p:g} per pixel": average(blank(norms[p] / pixels ** (1 / p), keep)) for p in ps}


def lp_distance(a: Tensor, b: Tensor, *, p: float = 1.0, per_pixel: bool = False) -> Tensor:
    """p-norm of a - b for each image (LDCE, Eq. 19): (N,C,H,W), (N,C,H,W) -> (N,) float64.

    per_pixel: mean instead of sum inside the root. ValueError unless p >= 1 and finite.
    """
    if not (p >= 1 and math.isfinite(p)):
        raise ValueError(f"p={p} given, 1 <= p < inf expected: below 1 it is no norm.")
    sizes = (a.double() - b.double()).abs().flatten(1)  # (N, C*H*W)
    powers = sizes * sizes.sqrt() if p == 1.5 else sizes.pow(p)  # the same, but faster
    return (powers.mean(1) if per_pixel else powers.sum(1)).pow(1 / p)


def lpips(
    x: Tensor | Results,
    x_cf: Tensor | None = None,
    *,
    network: Callable[[Tensor], Any] | None = None,
    where: Any = None,
    batch_size: int = 128,
) -> Value:
    """Mean perceptual distance LPIPS between x and x_cf (Zhang et al., 2018, Eq. 1), >= 0; 0 for equal images.

    x, x_cf: (N,C,H,W) in [-1,1], or a CFResult or a list of them. network: see `lpips_distance`; None: the published
    AlexNet where it is on disk, else personas/perceptual (`perceptual_network`). The network is printed with the
    value; distances in different networks cannot be compared. where: (N,) bool or "flipped"; all by default.
    Interval: bootstrap of images. Nothing selected: undefined (n=0). ValueError for wrong shapes and for images
    that the network does not take.
    """
    first, second = images(x, x_cf)
    keep = chosen(where, len(first), x)
    if not keep.any():
        return average(blank(torch.zeros(len(keep)), keep), backbone=name_of(network) if network else None)
    distance = lpips_distance(perceptual_network(first) if network is None else network)
    found = run(distance, first[keep], batch_size, second[keep])
    return average(spread(found, keep), backbone=distance.name)


def lpips_distance(network: Callable[[Tensor], Any], batch_size: int = 128) -> LPIPSDistance:
    """LPIPS as a function: (N,C,H,W), (N,C,H,W) in [-1,1] -> (N,) >= 0, differentiable; for `diversity(distance=...)`.

    network: (N,C,H,W) -> list of feature maps, with `.weights`, one (C_k,) >= 0 for each map, or without (all 1);
    or a network of the package `lpips`. ValueError for anything else.
    """
    return LPIPSDistance(network, batch_size)


class LPIPSDistance(nn.Module):
    """d(a, b) = sum_l mean_hw sum_c w_lc (f_lc(a) - f_lc(b))^2, features f_l of unit length in the channels.

    Zhang et al. (2018), Eq. 1, in the form of their code: w_l multiplies the squared differences, so it is the
    square of the w_l that is printed there. Made by `lpips_distance`.
    """

    def __init__(self, network: Callable[[Tensor], Any], batch_size: int = 128) -> None:
        super().__init__()
        if not callable(network):
            raise ValueError(
                f"network: {type(network).__name__} given, a network x -> feature maps expected."
            )
        self.network = _PackageTrunk(network) if hasattr(network, "scaling_layer") else network
        self.name, self.batch_size = name_of(self.network), batch_size

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """(N,C,H,W), (N,C,H,W) -> (N,) float32."""
        pairs = zip(a.split(self.batch_size), b.split(self.batch_size), strict=True)
        return torch.cat([self._batch(*pair) for pair in pairs])

    def _batch(self, a: Tensor, b: Tensor) -> Tensor:
        first, second = self._unit_maps(a), self._unit_maps(b)
        gaps = [(f - g).square() for f, g in zip(first, second, strict=True)]  # (N,C_k,H_k,W_k) each
        weights = getattr(self.network, "weights", None)
        if weights is not None:
            widths, given = [g.shape[1] for g in gaps], [len(w) for w in weights]
            if widths != given:
                raise ValueError(
                    f"weights for {given} channels given, {widths} expected: one for each channel."
                )
            gaps = [g * w.to(g).view(1, -1, 1, 1) for g, w in zip(gaps, weights, strict=True)]
        return torch.stack([g.sum(1).mean((1, 2)) for g in gaps]).sum(0)

    def _unit_maps(self, x: Tensor) -> list[Tensor]:
        maps = self.network(x)
        maps = [maps] if isinstance(maps, Tensor) else list(maps)
        if not maps or any(m.ndim != 4 or len(m) != len(x) for m in maps):
            shapes = [tuple(m.shape) for m in maps]
            raise ValueError(
                f"{self.name} gave {shapes}, feature maps (N,C,H,W) expected: pass a feature network."
            )
        return [F.normalize(m, dim=1, eps=1e-10) for m in maps]


def perceptual_network(x: Tensor) -> Callable[[Tensor], Any]:
    """The network of LPIPS for images x (N,C,H,W): the published AlexNet if it is on disk, else personas/perceptual.

    On disk: torchvision's file in the cache of torch.hub, beside the linear weights that the package `lpips`
    brings along. Nothing is downloaded. ValueError where neither takes the images.
    """
    from torchvision.models import AlexNet_Weights

    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(AlexNet_Weights.IMAGENET1K_V1.url).name
    return _published(str(file)) if file.is_file() else choose(None, "perceptual", x)


@lru_cache(maxsize=1)
def _published(file: str) -> nn.Module:
    from lpips import LPIPS

    with torch.inference_mode(False), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package asks torchvision in an outdated way
        return _PackageTrunk(LPIPS(net="alex", verbose=False)).requires_grad_(False)


class _PackageTrunk(nn.Module):
    """A network of the package `lpips` as feature maps with weights."""

    SMALLEST = {"alex": 31, "vgg": 16, "vgg16": 16, "squeeze": 17}  # pixels a side

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.name = model, f"LPIPS {model.pnet_type} v{model.version}"
        self.smallest = self.SMALLEST[model.pnet_type]
        lins = model.lins if model.lpips else []
        self.weights = [lin.model[-1].weight.detach().flatten() for lin in lins] or None

    def forward(self, x: Tensor) -> list[Tensor]:
        if x.shape[1] != 3 or min(x.shape[2:]) < self.smallest:
            raise ValueError(
                f"images {tuple(x.shape[1:])} given, 3 channels and at least {self.smallest} pixels a side expected "
                f"by {self.name}: repeat the channel, resize, or pass a network for such images."
            )
        return list(self.model.net(self.model.scaling_layer(x)))
