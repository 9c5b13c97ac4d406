"""Random views of an image, over which the gradient of a classifier is averaged (Blended Diffusion; DVCE, App. B.6)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Augment"]

CORNERS = ((-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0))
NUMBERS = 14  # of a view: turned or not, perspective or not, angle, shift (2), corners (8), blur


@dataclass(frozen=True)
class Augment:
    """How the classifier is shown the clean estimate: as it is, and in `n` - 1 random views (Avrahami et al. 2022).

    A view is, with probability `p` each: turned by up to `degrees` and shifted by up to `shift` of the side; seen in
    perspective, every corner drawn towards the middle by up to `perspective` of half the side. `blur`: side (odd) of a
    Gaussian kernel with sigma up to a quarter of it, 0 for none. What comes from outside repeats the border.
    """

    n: int = 16
    degrees: float = 15.0
    shift: float = 0.1
    perspective: float = 0.7
    p: float = 0.7
    blur: int = 0

    def __post_init__(self) -> None:
        ranges = (0 <= self.degrees <= 180, 0 <= self.shift < 1, 0 <= self.perspective < 1, 0 <= self.p <= 1)
        if self.n < 1 or not all(ranges) or self.blur < 0 or (self.blur and self.blur % 2 == 0):
            raise ValueError(
                f"{self}; expected n >= 1, degrees in [0, 180], shift and perspective in [0, 1), p in [0, 1] and an odd "
                "blur, or 0."
            )

    def check(self, x: Tensor) -> None:
        """Check that images (N,C,H,W) are not smaller than the kernel. Raises ValueError."""
        if min(x.shape[2:]) < self.blur:
            raise ValueError(
                f"the augmentations blur with a kernel of {self.blur}x{self.blur}, x has images of "
                f"{x.shape[2]}x{x.shape[3]} pixels; expected a kernel that fits, blur <= {min(x.shape[2:])}."
            )

    def draw(self, draw: Callable[[Tensor], Tensor], x: Tensor) -> Tensor | None:
        """What one step needs at random: one draw (N, n-1, 14) for images x (N,C,H,W); none, None, for n = 1."""
        return None if self.n == 1 else draw(x.new_zeros(len(x), self.n - 1, NUMBERS))

    def views(self, x: Tensor, draws: Tensor | None) -> Tensor:
        """The views (n,N,C,H,W) of images (N,C,H,W), themselves first, differentiable in them."""
        if draws is None:
            return x[None]
        u = torch.special.ndtr(draws).transpose(0, 1).flatten(0, 1)  # uniform, (V*N, 14), V = n - 1
        repeated = x.expand(self.n - 1, *x.shape).flatten(0, 1)
        warped = F.grid_sample(
            repeated, self._grid(u, x.shape[2:]), padding_mode="border", align_corners=False
        )
        warped = warped if self.blur == 0 else self._blurred(warped, u[:, 13])
        return torch.cat([x[None], warped.unflatten(0, (self.n - 1, len(x)))])

    def _grid(self, u: Tensor, size: torch.Size) -> Tensor:
        """Where each pixel of a view comes from: (M,14) uniform numbers -> (M,H,W,2) in [-1,1], x before y."""
        angle = (2 * u[:, 2] - 1) * math.radians(self.degrees) * (u[:, 0] < self.p)
        shift = (2 * u[:, 3:5] - 1) * 2 * self.shift * (u[:, :1] < self.p)
        inward = u[:, 5:13].view(-1, 4, 2) * self.perspective * (u[:, 1, None, None] < self.p)
        ys, xs = (((2 * torch.arange(side, device=u.device) + 1) / side - 1).to(u.dtype) for side in size)
        y, x = torch.meshgrid(ys, xs, indexing="ij")
        points = torch.stack([x, y, torch.ones_like(x)], -1).flatten(0, 1)  # (H*W, 3)
        seen = points @ _homography(inward).transpose(1, 2)  # (M, H*W, 3)
        seen = (seen[..., :2] / seen[..., 2:].clamp(min=1e-2)).clamp(-3, 3)
        turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
        return (seen @ turn.transpose(1, 2) + shift[:, None]).view(-1, *size, 2)

    def _blurred(self, x: Tensor, u: Tensor) -> Tensor:
        """Images (M,C,H,W), each blurred with its own sigma, up to a quarter of the kernel."""
        away = torch.arange(self.blur, device=x.device, dtype=x.dtype) - self.blur // 2
        weight = torch.softmax(-0.5 * (away / (u[:, None] * self.blur / 4).clamp(min=1e-2)) ** 2, 1)  # (M,k)
        m, c, height, width = x.shape
        kernel = (
            (weight[:, :, None] * weight[:, None, :])[:, None]
            .expand(m, c, -1, -1)
            .reshape(m * c, 1, *away.shape * 2)
        )
        padded = F.pad(x, (self.blur // 2,) * 4, mode="reflect").reshape(1, m * c, height + self.blur - 1, -1)
        return F.conv2d(padded, kernel, groups=m * c).view(m, c, height, width)


def _homography(inward: Tensor) -> Tensor:
    """The projective maps (M,3,3) that take the corners moved inward by (M,4,2) back to the corners of [-1,1]^2."""
    corners = inward.new_tensor(CORNERS)
    x, y = (corners * (1 - inward)).unbind(-1)  # (M,4) each
    to_x, to_y = corners.unbind(-1)
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    rows_x = torch.stack([x, y, one, zero, zero, zero, -x * to_x, -y * to_x], -1)
    rows_y = torch.stack([zero, zero, zero, x, y, one, -x * to_y, -y * to_y], -1)
    wanted = torch.cat([to_x, to_y]).expand(len(x), 8)
    solved = torch.linalg.solve(torch.cat([rows_x, rows_y], 1), wanted)
    return torch.cat([solved, torch.ones_like(solved[:, :1])], 1).view(-1, 3, 3)
