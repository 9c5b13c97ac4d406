"""Checks of notebook 02 (DiME)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cfx_lib.learn.checks import Wrong, check, close, number, shaped
from cfx_lib.methods.gradients import distance_gradient


def _images(*shape: int) -> Tensor:
    return torch.rand(*shape) * 2 - 1


# ------------------------------------------------------------------------------------ 02.1 semantic flips


def semantic_flips(predicted: Tensor, judged: Tensor, target: Tensor) -> Tensor:
    """(N,) classes of the classifier and of the oracle on the counterfactuals -> (N,) bool."""
    return (predicted == target) & (judged == target)


@check(
    "02.1",
    dots=1,
    minutes=4,
    hint="Two conditions must hold at once, and both are about `target`. `&` joins two tensors of bool.",
    reference=semantic_flips,
)
def _(answer: Callable) -> None:
    predicted = torch.tensor([1, 1, 0, 0, 1, 0])
    judged = torch.tensor([1, 0, 1, 0, 1, 0])
    target = torch.tensor([1, 1, 1, 1, 0, 0])
    got = answer(predicted, judged, target)
    shaped(got, (6,), "the answer")
    if got.dtype != torch.bool:
        raise Wrong(f"the answer should hold one True or False an image; its dtype is `{got.dtype}`.")
    if torch.equal(got, predicted == target):
        raise Wrong(
            "this is the plain flip: the classifier's own word. An adversarial image passes it. Ask the oracle too."
        )
    if torch.equal(got, judged == target):
        raise Wrong(
            "this asks the oracle alone. An image that does not flip the classifier explains nothing, however much "
            "it smiles: both must say `target`."
        )
    if torch.equal(got, predicted == judged):
        raise Wrong(
            "classifier and oracle agree here also where both give the OLD class: nothing flipped. "
            "Compare each of them with `target`."
        )
    close(got, semantic_flips(predicted, judged, target), "True only where both answers equal the target.")


# ------------------------------------------------------------------------------------ 02.2 clean gradients


def noisy_gradient(clean_grad: Tensor, alpha_bar: Tensor) -> Tensor:
    """Eq. 3.7 (thesis): gradient at x_t (N,C,H,W), alpha_bar (N,) -> gradient at z_t (N,C,H,W)."""
    return clean_grad / alpha_bar.sqrt().view(-1, 1, 1, 1)


@check(
    "02.2",
    dots=1,
    minutes=5,
    hint="Solve z = sqrt(alpha_bar) x + sqrt(1 - alpha_bar) eps for x and differentiate by z. Then give the numbers "
    "of shape (N,) three more axes with `view(-1, 1, 1, 1)`.",
    reference=noisy_gradient,
)
def _(answer: Callable) -> None:
    grad, a = _images(3, 2, 4, 4), torch.tensor([0.81, 0.25, 0.04])
    got, root = answer(grad, a), a.sqrt().view(-1, 1, 1, 1)
    shaped(got, (3, 2, 4, 4), "the gradient")
    if torch.allclose(got, grad * root):
        raise Wrong(
            "you multiplied by sqrt(alpha_bar): that is dz/dx. The chain rule needs dx/dz, its inverse. Check the sense: "
            "at heavy noise z hardly depends on x, so a given change of x is a small change of z, and the gradient in z is large."
        )
    if torch.allclose(got, grad / root**2):
        raise Wrong(
            "you divided by alpha_bar; in z the image stands with the square root of alpha_bar before it."
        )
    if torch.allclose(got, grad):
        raise Wrong(
            "this is the gradient at the clean image, unchanged: the chain rule's factor dx/dz is missing."
        )
    if torch.allclose(got, grad / (1 - root**2).sqrt()):
        raise Wrong("you divided by sqrt(1 - alpha_bar): that is the factor of the noise, not of the image.")
    close(
        got,
        noisy_gradient(grad, a),
        "it should be the clean gradient divided by sqrt(alpha_bar), image by image.",
    )


# ------------------------------------------------------------------------------------ 02.3 the exact gradient


def exact_gradient(
    loss: Callable[[Tensor], Tensor], denoise: Callable[[Tensor], Tensor], z: Tensor
) -> Tensor:
    """Eq. 3.5 (thesis): gradient with respect to z (N,C,H,W) of loss(denoise(z)) summed over the images."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        return torch.autograd.grad(loss(denoise(z)).sum(), z)[0]


@check(
    "02.3",
    dots=2,
    minutes=8,
    hint="Make a leaf: `z = z.detach().requires_grad_()`. Run denoise and loss on it inside `torch.enable_grad()`, "
    "sum over the images, and ask `torch.autograd.grad(total, z)[0]`.",
    reference=exact_gradient,
)
def _(answer: Callable) -> None:
    z, matrix = torch.randn(3, 1, 4, 4), torch.randn(16, 16)

    def denoise(v: Tensor) -> Tensor:
        return (v.flatten(1) @ matrix).tanh().view_as(v)

    def loss(v: Tensor) -> Tensor:
        return v.pow(2).flatten(1).sum(1)

    got = answer(loss, denoise, z)
    shaped(got, (3, 1, 4, 4), "the gradient")
    x_t = denoise(z).detach()
    if torch.allclose(got, 2 * x_t, atol=1e-5):
        raise Wrong(
            "this is the gradient at the CLEAN image, dL/dx_t. Differentiate with respect to z, through `denoise`: "
            "make z the leaf, not denoise(z)."
        )
    want = exact_gradient(loss, denoise, z)
    if torch.allclose(got, want / len(z), atol=1e-6):
        raise Wrong(
            "you averaged over the batch: then the gradient of an image depends on how many others are beside it. "
            "Take the sum; the images do not meet, so each gets its own gradient."
        )
    if torch.allclose(got, exact_gradient(loss, lambda v: v, z), atol=1e-5):
        raise Wrong("you took the loss of z itself; the loss is to see denoise(z).")
    close(
        got,
        want,
        "this is not d loss(denoise(z)).sum() / dz. Is a `detach()` or `no_grad` between loss and z?",
    )


# ------------------------------------------------------------------------------------ 02.4 the l1 term


def l1_gradient(z: Tensor, x: Tensor, lambda_1: float) -> Tensor:
    """Gradient with respect to z of lambda_1 ||z - x||_1 (thesis, below Eq. 3.8)."""
    return distance_gradient(z, x, lambda_1)


@check(
    "02.4",
    dots=1,
    minutes=4,
    hint="The derivative of |u| is the sign of u. Nothing is averaged: Eq. 3.8 has a norm, a sum over the pixels.",
    reference=l1_gradient,
)
def _(answer: Callable) -> None:
    z, x = torch.randn(2, 3, 4, 4), _images(2, 3, 4, 4)
    z[0, 0, 0] = x[0, 0, 0]  # no difference: no gradient
    got, want = answer(z, x, 0.05), 0.05 * (z - x).sign()
    shaped(got, (2, 3, 4, 4), "the gradient")
    if torch.allclose(got, -want):
        raise Wrong(
            "the sign is turned round: the guided step goes AGAINST the gradient, so this would push z away from x."
        )
    if torch.allclose(got, 0.05 * (z - x)) or torch.allclose(got, 0.1 * (z - x)):
        raise Wrong(
            "this grows with the distance: the gradient of a squared l2 norm. The l1 norm pulls every pixel equally "
            "hard, near or far; that is what makes the change sparse."
        )
    if torch.allclose(got, want / 48) or torch.allclose(got, want / 96):
        raise Wrong(
            "you divided by the number of pixels: the norm is a sum, and lambda_1 is tuned for the sum."
        )
    if torch.allclose(got, (z - x).sign()):
        raise Wrong("lambda_1 is missing.")
    close(got, want, "expected lambda_1 times the sign of z - x.")


# ------------------------------------------------------------------------------------ 02.5 the guided step


def guided_step(mean: Tensor, variance: Tensor, grad: Tensor, noise: Tensor, last: bool) -> Tensor:
    """Eq. 3.4 (thesis): z_{t-1} from the model's mean and variance (N,C,H,W), the gradient and a draw of noise."""
    z = mean - variance * grad
    return z if last else z + variance.sqrt() * noise


@check(
    "02.5",
    dots=2,
    minutes=6,
    hint="Eq. 3.4 is a normal distribution: write down its mean, then add its standard deviation (not the variance) "
    "times the noise, unless this is the last step.",
    reference=guided_step,
)
def _(answer: Callable) -> None:
    mean, grad, noise = (torch.randn(2, 3, 4, 4) for _ in range(3))
    variance = torch.rand(2, 3, 4, 4) * 0.5 + 0.01
    got = shaped(answer(mean, variance, grad, noise, False), (2, 3, 4, 4), "z")
    draw = variance.sqrt() * noise
    if torch.allclose(got, mean + variance * grad + draw, atol=1e-6):
        raise Wrong(
            "the step goes up the loss: L is a LOSS (small is good), so its gradient is subtracted. Dhariwal and Nichol "
            "add the gradient of a log-probability; that is where the plus comes from."
        )
    if torch.allclose(got, mean - grad + draw, atol=1e-6):
        raise Wrong(
            "the gradient is multiplied by the variance: guidance is strong where the model is unsure."
        )
    if torch.allclose(got, mean - variance.sqrt() * grad + draw, atol=1e-6):
        raise Wrong(
            "the gradient is multiplied by the variance, not by its root; only the noise takes the root."
        )
    if torch.allclose(got, mean - variance * grad + variance * noise, atol=1e-6):
        raise Wrong(
            "noise of variance S is sqrt(S) times a standard normal draw; you multiplied by S itself."
        )
    if torch.allclose(got, mean - variance * grad, atol=1e-6):
        raise Wrong("no noise was added although `last` is False: this follows the mean only.")
    close(got, mean - variance * grad + draw, "compare with Eq. 3.4: mean - variance * grad, plus the noise.")
    end = shaped(answer(mean, variance, grad, noise, True), (2, 3, 4, 4), "z")
    close(
        end,
        mean - variance * grad,
        "at the last step the image should be clean: no noise when `last` is True.",
    )


# ------------------------------------------------------------------------------------ 02.6 counting calls


def network_calls(start: int, shared: bool) -> int:
    """Denoiser calls of one attempt with the full inner chain; `shared`: each chain's first call is the next step's."""
    calls = start * (start + 1) // 2
    return calls - (start - 1) if shared else calls


@check(
    "02.6",
    dots=2,
    minutes=8,
    hint="The step at index i (from start - 1 down to 0) makes 1 call for its own mean and then i calls to walk from "
    "z at index i - 1 to a clean image. Sum 1 + i over i. Sharing saves one call in every chain that exists: i > 0.",
    reference=network_calls,
)
def _(answer: Callable) -> None:
    for start in (1, 2, 5, 60):
        for shared in (False, True):
            got, want = answer(start, shared), network_calls(start, shared)
            got = number(got)
            if got == want:
                continue
            seen = f"for start = {start}, shared = {shared} you return {got:g}, it is {want}."
            if not shared and got == start**2:
                raise Wrong(f"{seen} A chain gets shorter with every step: it begins where the step ended.")
            if not shared and got == start * (start - 1) // 2:
                raise Wrong(
                    f"{seen} You counted the inner chains, but each step also makes a call of its own."
                )
            if not shared and got == start:
                raise Wrong(f"{seen} You counted the outer steps; each of them starts an inner chain too.")
            if shared and got == start * (start + 1) // 2:
                raise Wrong(f"{seen} With sharing the first call of an inner chain is not made twice.")
            if shared and got == start * (start + 1) // 2 - start:
                raise Wrong(
                    f"{seen} The last step has no inner chain after it, so there is one less to save."
                )
            raise Wrong(f"{seen} Write the calls of start = 3 on paper, step by step.")


# ------------------------------------------------------------------------------------ 02.7 retries


def with_retries(
    attempt: Callable[[Tensor, float], Tensor],
    predict: Callable[[Tensor], Tensor],
    x: Tensor,
    target: Tensor,
    scales: Sequence[float],
) -> Tensor:
    """Try the scales in turn on the images that have not flipped yet; returns x_cf (N,C,H,W)."""
    x_cf, rows = x.clone(), torch.arange(len(x))
    for scale in scales:
        x_cf[rows] = attempt(rows, scale)
        rows = (predict(x_cf) != target).nonzero().squeeze(1)
        if len(rows) == 0:
            break
    return x_cf


@check(
    "02.7",
    dots=3,
    minutes=12,
    hint="Keep `rows`, the positions still to be done, beginning with all. Each round: write `attempt(rows, scale)` into "
    "`x_cf[rows]`, then keep the rows whose prediction is not the target; stop when none is left.",
    reference=with_retries,
)
def _(answer: Callable) -> None:
    x, target = torch.zeros(5, 1, 2, 2), torch.ones(5, dtype=torch.long)
    needs = torch.tensor([8.0, 10.0, 15.0, 8.0, 99.0])  # the scale at which each image flips
    asked: list[tuple[float, list[int]]] = []

    def attempt(rows: Tensor, scale: float) -> Tensor:
        rows = torch.as_tensor(rows)
        rows = rows.nonzero().squeeze(1) if rows.dtype == torch.bool else rows
        if len(rows) == 0:
            raise Wrong("`attempt` was called with no image left: stop the loop then.")
        asked.append((float(scale), rows.tolist()))
        return (
            torch.where(needs[rows] <= scale, float(scale), -float(scale))
            .view(-1, 1, 1, 1)
            .expand(-1, 1, 2, 2)
        )

    def predict(images: Tensor) -> Tensor:
        return (images.flatten(1).mean(1) > 0).long()

    got = shaped(answer(attempt, predict, x, target, (8.0, 10.0, 15.0)), (5, 1, 2, 2), "x_cf")
    if [scale for scale, _ in asked] == [8.0]:
        raise Wrong("only the first scale was tried, though some images had not flipped by then.")
    if any(rows == [0, 1, 2, 3, 4] for _, rows in asked[1:]):
        raise Wrong(
            "you attempted all images again with each scale. Those that flipped with a gentle scale would get the edit of a "
            "harsh one: larger than needed, and it costs time."
        )
    if asked and asked[0][1] != [0, 1, 2, 3, 4]:
        raise Wrong("the first, smallest scale should be tried on all images.")
    if [rows for _, rows in asked] != [[0, 1, 2, 3, 4], [1, 2, 4], [2, 4]]:
        raise Wrong(
            f"the rounds were {asked}: after each round only the images that do not give `target` should stay, "
            "at their positions in the whole batch."
        )
    if got[4].abs().sum() == 0:
        raise Wrong(
            "an image that never flips should keep its last attempt, so that its failure can be looked at."
        )
    want = torch.tensor([8.0, 10.0, 15.0, 8.0, -15.0]).view(-1, 1, 1, 1).expand(5, 1, 2, 2)
    close(
        got,
        want,
        "each image should hold the result of the first scale that flipped it, or else of the last.",
    )
    needs = torch.full((5,), 8.0)
    asked.clear()
    answer(attempt, predict, x, target, (8.0, 10.0, 15.0))
    if len(asked) > 1:
        raise Wrong("all images flipped with the first scale, yet you went on: stop as soon as none is left.")


# ------------------------------------------------------------------------------------ 02.8 masks


def compose(x_t: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    """Eq. 3.21 (thesis), second line: x_t inside the mask (1), x outside (0)."""
    return x_t * mask + x * (1 - mask)


@check(
    "02.8",
    dots=1,
    minutes=4,
    hint="Where the mask is 1 the classifier should see x_t, where it is 0 the untouched x: two products, one sum. "
    "A mask (1,1,H,W) lines up with (N,C,H,W) by itself.",
    reference=compose,
)
def _(answer: Callable) -> None:
    x_t, x, mask = _images(2, 3, 4, 4), _images(2, 3, 4, 4), torch.zeros(1, 1, 4, 4)
    mask[..., :2, :] = 1
    got = shaped(answer(x_t, x, mask), (2, 3, 4, 4), "the composed image")
    if torch.allclose(got, x * mask + x_t * (1 - mask)):
        raise Wrong(
            "inside and outside are swapped: the mask is 1 where change is ALLOWED, so x_t belongs there."
        )
    if torch.allclose(got, x_t * mask):
        raise Wrong(
            "outside the mask the image became 0, mid-grey. The classifier would react to the grey frame; "
            "put the original x there."
        )
    if torch.allclose(got, x_t + x * (1 - mask)):
        raise Wrong("outside the mask both images are added up: x_t must be switched off there.")
    close(got, compose(x_t, x, mask), "expected x_t * mask + x * (1 - mask).")
