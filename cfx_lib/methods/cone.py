"""The cone projection of DVCE (Sect. 3.2): a robust classifier's gradient, brought near the one to be explained."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .guidance import unit

__all__ = ["cone_angle", "cone_projection"]


def _parts(v: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unit v (N,d), unit part of w across it (N,d), and how long unit w is along and across, (N,1) each."""
    axis, direction = unit(v)[0].flatten(1), unit(w)[0].flatten(1)
    along = (axis * direction).sum(1, keepdim=True)
    across = direction - along * axis
    across = across - (axis * across).sum(1, keepdim=True) * axis  # once more, for what rounding left along v
    length = torch.linalg.vector_norm(across, dim=1, keepdim=True)
    return axis, torch.where(length > 0, across / length, across), along, length


def cone_angle(v: Tensor, w: Tensor) -> Tensor:
    """The angle between v and w of each image, in degrees: (N,...) twice -> (N,); NaN where one has no direction."""
    _, _, along, length = _parts(v, w)
    undefined = unit(v)[1] | unit(w)[1]
    angle = torch.rad2deg(torch.atan2(length, along)).squeeze(1)
    return torch.where(undefined, torch.full_like(angle, torch.nan), angle)


def cone_projection(
    v: Tensor, w: Tensor, angle_deg: float, inside: str = "w", *, ascend: bool = False
) -> Tensor:
    """P_cone(alpha, v)[w] of Sect. 3.2 (DVCE): w, brought into the cone of `angle_deg` around v; (N,...) -> (N,...).

    `v`, `w` (N,...): gradients of the classifier to explain and of the robust one, of any length. Outside the cone the
    result is <u, w> u with u the direction on the cone's surface next to w, the closest point of the cone as long as
    the angle is at most 90 + `angle_deg` degrees. Beyond, <u, w> is negative and the paper's formula points AWAY from
    the cone, against v; `ascend=True` takes |<u, w>| instead, so that the result always lies in the cone.

    `inside="w"`: a w in the cone is returned as it is (paper). `inside="v"`: there v / ||v|| is returned, and outside
    u / cos(alpha) (released code; LDCE, Eq. 12): directions on the side of v only, whatever <u, w>.

    Without a direction of v (zero, NaN) there is no cone: the result is 0. A w without direction counts as inside:
    0, or v / ||v|| with inside="v". For w opposite to v every direction across is as near; what rounding leaves is
    taken. Raises ValueError.
    """
    if inside not in ("w", "v"):
        raise ValueError(f"inside = {inside!r}; expected one of: 'w', 'v'.")
    if not 0 < angle_deg < 90:
        raise ValueError(
            f"angle_deg = {angle_deg}; expected an angle of the cone strictly between 0 and 90 degrees."
        )
    if v.shape != w.shape:
        raise ValueError(
            f"v has shape {tuple(v.shape)}, w {tuple(w.shape)}; expected the same shape (N, ...)."
        )
    alpha, (no_axis, no_w) = math.radians(angle_deg), (unit(v)[1][:, None], unit(w)[1][:, None])
    axis, across, along, length = _parts(v, w)
    outside = (torch.atan2(length, along) > alpha) & ~no_w
    if inside == "v":
        projected = torch.where(outside, math.tan(alpha) * across + axis, axis)
    else:
        u = math.sin(alpha) * across + math.cos(alpha) * axis
        kept = torch.where(no_w, torch.zeros_like(u), w.flatten(1))
        reach = (u * kept).sum(1, keepdim=True)
        projected = torch.where(outside, (reach.abs() if ascend else reach) * u, kept)
    return torch.where(no_axis, torch.zeros_like(projected), projected).view_as(w)
