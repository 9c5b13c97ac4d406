"""Wrong answers to the exercises of notebook 02, with a part of the message that each must get."""

import torch


def _retry_all(attempt, predict, x, target, scales):
    x_cf = x.clone()
    for scale in scales:
        x_cf = attempt(torch.arange(len(x)), scale).clone()
        if (predict(x_cf) == target).all():
            break
    return x_cf


def _retry_once(attempt, predict, x, target, scales):
    return attempt(torch.arange(len(x)), scales[0]).clone()


def _retry_forgets_failures(attempt, predict, x, target, scales):
    x_cf, rows = x.clone(), torch.arange(len(x))
    for scale in scales:
        new = attempt(rows, scale)
        hit = predict(new) == target[rows]
        x_cf[rows[hit]] = new[hit]
        rows = rows[~hit]
        if len(rows) == 0:
            break
    return x_cf


def _retry_never_stops(attempt, predict, x, target, scales):
    x_cf, rows = x.clone(), torch.arange(len(x))
    for scale in scales:
        x_cf[rows] = attempt(rows, scale)
        rows = (predict(x_cf) != target).nonzero().squeeze(1)
    return x_cf


def _retry_local_rows(attempt, predict, x, target, scales):
    x_cf, rows = x.clone(), torch.arange(len(x))
    for scale in scales:
        x_cf[rows] = attempt(rows, scale)
        rows = (predict(x_cf[rows]) != target[rows]).nonzero().squeeze(1)  # positions within rows
        if len(rows) == 0:
            break
    return x_cf


def _exact_at_clean(loss, denoise, z):
    x_t = denoise(z).detach().requires_grad_()
    return torch.autograd.grad(loss(x_t).sum(), x_t)[0]


def _exact_mean(loss, denoise, z):
    z = z.detach().requires_grad_()
    return torch.autograd.grad(loss(denoise(z)).mean(), z)[0]


def _exact_without_denoiser(loss, denoise, z):
    z = z.detach().requires_grad_()
    return torch.autograd.grad(loss(z).sum(), z)[0]


def _exact_detached(loss, denoise, z):
    z = z.detach().requires_grad_()
    return torch.autograd.grad(loss(denoise(z).detach()).sum(), z)[0]


WRONG = {
    "02.1": [
        (lambda predicted, judged, target: predicted == target, "ask the oracle too"),
        (lambda predicted, judged, target: judged == target, "oracle alone"),
        (lambda predicted, judged, target: predicted == judged, "old class"),
        (lambda predicted, judged, target: (predicted == target).float().mean(), "shape"),
    ],
    "02.2": [
        (lambda clean_grad, alpha_bar: clean_grad * alpha_bar.sqrt().view(-1, 1, 1, 1), "dz/dx"),
        (lambda clean_grad, alpha_bar: clean_grad / alpha_bar.view(-1, 1, 1, 1), "square root"),
        (lambda clean_grad, alpha_bar: clean_grad, "chain rule's factor"),
        (
            lambda clean_grad, alpha_bar: clean_grad / (1 - alpha_bar).sqrt().view(-1, 1, 1, 1),
            "factor of the noise",
        ),
        (lambda clean_grad, alpha_bar: clean_grad / alpha_bar.sqrt(), "shapes"),
    ],
    "02.3": [
        (_exact_at_clean, "clean image"),
        (_exact_mean, "averaged"),
        (_exact_without_denoiser, "loss of z itself"),
        (_exact_detached, "raised"),
    ],
    "02.4": [
        (lambda z, x, lambda_1: lambda_1 * (x - z).sign(), "turned round"),
        (lambda z, x, lambda_1: lambda_1 * (z - x), "squared l2"),
        (lambda z, x, lambda_1: lambda_1 * (z - x).sign() / z[0].numel(), "number of pixels"),
        (lambda z, x, lambda_1: (z - x).sign(), "lambda_1 is missing"),
        (lambda z, x, lambda_1: lambda_1 * (z - x).abs().sum(), "shape"),
    ],
    "02.5": [
        (
            lambda mean, variance, grad, noise, last: mean + variance * grad + variance.sqrt() * noise,
            "up the loss",
        ),
        (
            lambda mean, variance, grad, noise, last: mean - grad + variance.sqrt() * noise,
            "multiplied by the variance",
        ),
        (
            lambda mean, variance, grad, noise, last: mean - variance.sqrt() * (grad - noise),
            "not by its root",
        ),
        (
            lambda mean, variance, grad, noise, last: mean - variance * grad + variance * noise,
            "multiplied by S",
        ),
        (lambda mean, variance, grad, noise, last: mean - variance * grad, "no noise"),
        (lambda mean, variance, grad, noise, last: mean - variance * grad + variance.sqrt() * noise, "clean"),
    ],
    "02.6": [
        (lambda start, shared: start**2, "shorter with every step"),
        (lambda start, shared: start * (start - 1) // 2, "call of its own"),
        (lambda start, shared: start, "outer steps"),
        (lambda start, shared: start * (start + 1) // 2, "not made twice"),
        (lambda start, shared: start * (start + 1) // 2 - start * shared, "one less to save"),
        (lambda start, shared: "many", "expected a number"),
    ],
    "02.7": [
        (_retry_all, "all images again"),
        (_retry_once, "only the first scale"),
        (_retry_forgets_failures, "last attempt"),
        (_retry_never_stops, "no image left"),
        (_retry_local_rows, "positions in the whole batch"),
    ],
    "02.8": [
        (lambda x_t, x, mask: x * mask + x_t * (1 - mask), "swapped"),
        (lambda x_t, x, mask: x_t * mask, "mid-grey"),
        (lambda x_t, x, mask: x_t + x * (1 - mask), "switched off"),
        (lambda x_t, x, mask: x_t, "expected x_t * mask"),
    ],
}
