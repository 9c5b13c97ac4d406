"""Adversarial training (Madry et al. 2018) in l2 balls, and the robust accuracy that a kept library's attacks leave.

Radii are l2 norms on the library's scale, images in [-1, 1]; the same change has half of that norm on the scale [0, 1].
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfx_lib.train.loop import LossFn
from cfx_lib.types import frozen_models

Objective = Callable[[Tensor], Tensor]
Aim = Callable[..., Objective]

STEP = 2.5  # a step's length is STEP * radius / steps, so that any point of the ball can be reached (Madry et al., section 5)


# ---------------------------------------------------------------------------------------------------- training


def pgd_l2(
    objective: Objective,
    x: Tensor,
    radius: float,
    steps: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Raise ``objective`` by projected gradient ascent in an l2 ball around each image.

    x_{k+1} = P(x_k + step g / ||g||_2), where P projects on the ball of ``radius`` around x and on [-1, 1], and x_0 is
    uniform in the ball. Source: Madry et al. 2018, "Towards deep learning models resistant to adversarial attacks",
    section 2.1, with the normalised gradient in the place of its sign, the steepest ascent in l2.

    `objective`: images (N,C,H,W) -> the sum over the images of what is to be raised. `x`: (N,C,H,W) in [-1,1].
    Returns images of the same shape, in [-1,1] and at most ``radius`` away; no gradient of any weight is touched.
    Where the gradient is zero an image stays. Raises ValueError for a radius or a number of steps that is not positive.
    """
    if not radius > 0 or steps < 1:
        raise ValueError(
            f"radius = {radius}, steps = {steps}; expected a radius above 0 and at least one step."
        )
    start = torch.randn(x.shape, generator=generator).to(x)
    share = torch.rand(len(x), 1, 1, 1, generator=generator).to(x) ** (1 / x[0].numel())
    x_adv = (x + radius * share * start / _norm(start)).clamp(-1, 1)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        (g,) = torch.autograd.grad(objective(x_adv), x_adv)
        delta = x_adv.detach() + STEP * radius / steps * g / _norm(g) - x
        delta = delta * (radius / _norm(delta)).clamp(max=1)
        x_adv = (x + delta).clamp(-1, 1)  # x is in [-1, 1], so this only brings the image nearer to it
    return x_adv.detach()


def _norm(x: Tensor) -> Tensor:
    """l2 norm of each image, (N,1,1,1), kept above 0."""
    return x.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)


def at_class(generator: torch.Generator, labels: Tensor) -> Objective:
    """What to raise against a K-class network: the cross-entropy of ``labels`` (N,) long, summed over the images."""
    return lambda logits: F.cross_entropy(logits, labels, reduction="sum")


def at_one_attribute(generator: torch.Generator, labels: Tensor, continuous: Tensor) -> Objective:
    """What to raise against an attribute network: the loss of one attribute an image, drawn at random.

    `labels` (N,A) float in {0, 1}. The whole radius is spent on that attribute: an attack on the sum of all losses would
    share it out, and leave each of them less robust than the radius says. `continuous` is not attacked.
    """
    chosen = torch.randint(labels.shape[1], (len(labels), 1), generator=generator).to(labels.device)
    truth = labels.gather(1, chosen)
    return lambda out: F.binary_cross_entropy_with_logits(out.gather(1, chosen), truth, reduction="sum")


def adversarial_loss(loss: LossFn, aim: Aim, radius: float, steps: int) -> LossFn:
    """min over the weights of E[max over ||delta||_2 <= radius of L(x + delta, y)] (Madry et al. 2018, Eq. 2.1).

    The inner maximum is `pgd_l2` on `aim(generator, *labels)`; ``loss`` is then taken at its result. The attack sees the
    network in eval mode with frozen weights, so the running statistics of its batch norms are those of the outer pass alone
    and no gradient is left on the weights; the modes are restored before the outer pass, also after an exception.
    """

    def adversarial(model: nn.Module, generator: torch.Generator, x: Tensor, *labels: Tensor) -> Tensor:
        bare, objective = getattr(model, "module", model), aim(generator, *labels)
        with frozen_models(bare):
            x_adv = pgd_l2(lambda z: objective(bare(z).float()), x, radius, steps, generator)
        return loss(model, generator, x_adv, *labels)

    return adversarial


# ---------------------------------------------------------------------------------------------------- measuring


def load_foolbox():  # noqa: ANN201
    """The module `foolbox`. Raises ModuleNotFoundError saying how to install it."""
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # one of its imports looks for the program git
    try:
        import foolbox
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "robust accuracy is measured with foolbox, which is not installed: pip install -e '.[dev]'"
        ) from error
    return foolbox


def attack_distance(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    radii: Iterable[float],
    *,
    steps: int = 50,
    restarts: int = 3,
    minimal_steps: int = 100,
    seed: int = 0,
    batch: int = 250,
) -> Tensor:
    """The smallest l2 distance at which one of foolbox's attacks changes the answer for each image, (N,) float32.

    0 where the answer is wrong to begin with, infinity where no attack finds one. Two attacks, worst case over both: DDN
    (Rony et al. 2019), which looks for the nearest adversarial image (``minimal_steps`` steps), then for every radius PGD
    on the cross-entropy (``steps`` steps of length 2.5 radius / steps) from ``restarts`` random starts against the images
    that still stand. The robust accuracy at a radius is the share of distances above it, an upper bound of the true one.

    `model`: (N,C,H,W) in [-1,1] -> logits (N,K); eval mode for the time being. `labels`: (N,) long. `radii`: on the scale
    [-1,1]. Raises ModuleNotFoundError without foolbox.
    """
    foolbox = load_foolbox()
    minimal = foolbox.attacks.DDNAttack(steps=minimal_steps)
    projected = foolbox.attacks.L2ProjectedGradientDescentAttack(rel_stepsize=STEP / steps, steps=steps)
    with torch.random.fork_rng(), frozen_models(model):
        torch.manual_seed(seed)
        network = foolbox.PyTorchModel(model, bounds=(-1, 1), device=x.device)
        answers = torch.cat([model(part).argmax(1) for part in x.split(batch)])
        distance = torch.where(answers == labels, torch.inf, 0.0)
        for rows in _standing(distance, 0.0, batch):
            _, found, success = minimal(network, x[rows], labels[rows], epsilons=None)
            near = (found - x[rows]).flatten(1).norm(dim=1)
            distance[rows] = torch.where(success, near, torch.inf)
        for radius in sorted(radii):
            for _ in range(restarts):
                for rows in _standing(distance, radius, batch):
                    _, _, success = projected(network, x[rows], labels[rows], epsilons=radius)
                    distance[rows[success]] = float(radius)
    return distance


def _standing(distance: Tensor, radius: float, batch: int) -> list[Tensor]:
    """The images that no attack inside ``radius`` has changed yet, as index batches."""
    rows = (distance > radius).nonzero()[:, 0]
    return list(rows.split(batch)) if len(rows) else []
