"""The attacks that ACE minimises Eq. 4.3 (thesis) with: PGD, plain gradient descent and Carlini and Wagner's.

Gradients, distances and steps are those of images in [0,1], which the papers' lambda_d and step sizes belong to;
the images themselves stay in [-1,1], where the same length is twice as long.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .gradients import class_loss

__all__ = ["CarliniWagner", "Descent", "attack_loss", "ball", "make_update", "norm_gradient"]

UNIT = 2 / 255
"""1/255 of the range [0,1], on the scale [-1,1] of the library's images."""
ROUNDING = 1e-6
"""Differences of two images in [-1,1] that are taken for rounding: a step back may miss x by a few 1e-8."""
INSIDE = 1 - 1e-4
"""How far the tanh of C&W's variable reaches: its inverse is infinite at +-1, where many pixels of drawings lie."""


def attack_loss(logits: Tensor, target: Tensor, loss: str = "log_prob", confidence: float = 0.0) -> Tensor:
    """L_class of Eq. 4.3 (thesis), one value an image: (N,K), (N,) -> (N,).

    "log_prob" (the paper's cross-entropy) and "logit" as `gradients.class_loss`; "margin" is f_6 of Carlini and
    Wagner (2017): max(max_{j != y} Z_j - Z_y, -confidence), which stops pulling once the target leads by that much.
    """
    if loss != "margin":
        return class_loss(logits, target, loss)
    wanted = logits.gather(1, target[:, None]).squeeze(1)
    others = logits.scatter(1, target[:, None], -torch.inf).amax(1)
    return (others - wanted).clamp(min=-confidence)


def norm_gradient(x_adv: Tensor, x: Tensor, distance: str) -> Tensor:
    """Gradient in x' of d(x', x) in Eq. 4.3 (thesis), image by image: (N,C,H,W) twice -> (N,C,H,W).

    "l1": the sum of absolute differences; "l2": the Euclidean norm (not squared). Zero where the two are equal.
    """
    difference = x_adv - x
    difference = torch.where(difference.abs() > ROUNDING, difference, torch.zeros_like(difference))
    if distance == "l1":
        return difference.sign()
    return F.normalize(difference.flatten(1), dim=1).view_as(difference)


def ball(x: Tensor, eps: float | None) -> tuple[Tensor, Tensor]:
    """The lowest and highest allowed images: the l_inf ball of `eps`/255 (None: no ball) cut to [-1,1].

    Contains `x` (N,C,H,W) itself also where rounding put it a little outside [-1,1].
    """
    radius = 2.0 if eps is None else eps * UNIT
    return torch.minimum(x, (x - radius).clamp(min=-1)), torch.maximum(x, (x + radius).clamp(max=1))


class Descent:
    """Steps against the gradient inside bounds: of equal length for all pixels (PGD), or with `sign=False` GD.

    Called with x' (n,C,H,W), the gradient of Eq. 4.3 and the `rows` (n,) of the batch that they belong to;
    returns the next x'. `step` in 1/255.
    """

    def __init__(self, low: Tensor, high: Tensor, step: float, sign: bool = True) -> None:
        self.low, self.high, self.step, self.sign = low, high, step * UNIT, sign

    def __call__(self, x_adv: Tensor, gradient: Tensor, rows: Tensor) -> Tensor:
        direction = gradient.sign() if self.sign else gradient
        return (x_adv - self.step * direction).clamp(self.low[rows], self.high[rows])


class CarliniWagner:
    """Carlini and Wagner (2017), Sect. V: Adam in w with x' = tanh(w), so that x' needs no box; called as `Descent`.

    x' is shifted by x - tanh(w_0), less than 1e-4, so that it begins at x exactly. Every image has its own moments
    and its own count of steps. `step`: Adam's learning rate, in 1/255 of [0,1] (about one such step at mid grey).
    """

    def __init__(self, x: Tensor, low: Tensor, high: Tensor, step: float) -> None:
        self.low, self.high, self.step = low, high, step * UNIT
        self.w = torch.atanh(x.clamp(-1, 1) * INSIDE)
        self.shift = x - self.w.tanh()
        self.first, self.second = torch.zeros_like(x), torch.zeros_like(x)
        self.steps = torch.zeros(len(x), 1, 1, 1, device=x.device)

    def __call__(self, x_adv: Tensor, gradient: Tensor, rows: Tensor) -> Tensor:
        gradient = gradient * (1 - self.w[rows].tanh().square())  # dx'/dw
        self.steps[rows] += 1
        self.first[rows] = 0.9 * self.first[rows] + 0.1 * gradient
        self.second[rows] = 0.999 * self.second[rows] + 0.001 * gradient.square()
        mean = self.first[rows] / (1 - 0.9 ** self.steps[rows])
        deviation = (self.second[rows] / (1 - 0.999 ** self.steps[rows])).sqrt()
        self.w[rows] = self.w[rows] - self.step * mean / (deviation + 1e-8)
        return (self.shift[rows] + self.w[rows].tanh()).clamp(self.low[rows], self.high[rows])


def make_update(attack: str, x: Tensor, step: float, eps: float | None = None) -> Descent | CarliniWagner:
    """The steps of the attack "pgd", "gd" or "cw" on the images `x` (N,C,H,W); `step` and `eps` in 1/255."""
    low, high = ball(x, eps)
    if attack == "cw":
        return CarliniWagner(x, low, high, step)
    return Descent(low, high, step, sign=attack == "pgd")
