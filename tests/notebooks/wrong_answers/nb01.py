"""Wrong answers that learners give in notebook 01, with a part of the message that each must get."""

import torch
import torch.nn.functional as F


def each(a):
    return a.view(-1, 1, 1, 1)


def loss_of(model, x0, t, noise, alpha_bar):
    a = each(alpha_bar[t]).float()
    x_t = a.sqrt() * x0 + (1 - a).sqrt() * noise
    return model(x_t, t).sample, x_t


def chosen_log_prob(classifier, x_t, noise_std, y):
    x = x_t.detach().requires_grad_()
    return x, classifier(x, noise_std).log_softmax(1)[torch.arange(len(y)), y]


def gradient(value, x):
    return torch.autograd.grad(value, x)[0]


def mean_over_batch(classifier, x_t, noise_std, y):
    x, log_p = chosen_log_prob(classifier, x_t, noise_std, y)
    return gradient(log_p.mean(), x)


def downhill(classifier, x_t, noise_std, y):
    x, log_p = chosen_log_prob(classifier, x_t, noise_std, y)
    return -gradient(log_p.sum(), x)


def of_the_logit(classifier, x_t, noise_std, y):
    x = x_t.detach().requires_grad_()
    return gradient(classifier(x, noise_std)[torch.arange(len(y)), y].sum(), x)


def of_the_probability(classifier, x_t, noise_std, y):
    x, log_p = chosen_log_prob(classifier, x_t, noise_std, y)
    return gradient(log_p.exp().sum(), x)


def of_all_classes(classifier, x_t, noise_std, y):
    x = x_t.detach().requires_grad_()
    return gradient(classifier(x, noise_std).log_softmax(1).sum(), x)


def in_place(x0, alpha_bar_t, noise):
    x0 *= each(alpha_bar_t).sqrt()
    return x0 + (1 - each(alpha_bar_t)).sqrt() * noise


def posterior(of_x0, of_x_t):
    """A wrong posterior mean from its two coefficients, functions of (beta, alpha_bar_t, alpha_bar_prev)."""

    def answer(x0, x_t, beta_t, alpha_bar_t, alpha_bar_prev):
        given = (beta_t, alpha_bar_t, alpha_bar_prev)
        return (of_x0(*given) * x0 + of_x_t(*given) * x_t).float()

    return answer


def right_x0(beta, bar, before):
    return beta * before.sqrt() / (1 - bar)


def right_x_t(beta, bar, before):
    return (1 - before) * (1 - beta).sqrt() / (1 - bar)


def clean(x_t, eps, bar):
    return (x_t - (1 - bar).sqrt() * eps) / bar.sqrt()


def frac(v):
    return (v + 1) / 2


WRONG = {
    "01.1": [
        (lambda betas: torch.cumprod(betas, 0), "you multiplied the betas"),
        (lambda betas: torch.cumsum(1 - betas, 0), "survival multiplies"),
        (lambda betas: 1 - betas, "survives one step"),
        (lambda betas: torch.cumprod(1 - betas, 0).sqrt(), "took the root"),
        (lambda betas: torch.prod(1 - betas), "has shape"),
        (lambda betas: 1 - torch.cumsum(betas, 0), "product of"),
    ],
    "01.2": [
        (lambda x0, a, noise: each(a) * x0 + (1 - each(a)) * noise, "both roots are missing"),
        (lambda x0, a, noise: each(a).sqrt() * x0 + (1 - each(a)) * noise, "root over the noise"),
        (lambda x0, a, noise: each(a).sqrt() * x0 + noise, "full strength"),
        (lambda x0, a, noise: (1 - each(a)).sqrt() * x0 + each(a).sqrt() * noise, "swapped"),
        (lambda x0, a, noise: a.sqrt() * x0 + (1 - a).sqrt() * noise, "shapes"),
        (in_place, "changes a tensor"),
    ],
    "01.3": [
        (lambda m, x0, t, n, ab: F.mse_loss(m(x0, t).sample, n), "clean images"),
        (lambda m, x0, t, n, ab: F.mse_loss(loss_of(m, x0, t, n, ab)[0], x0), "the target is"),
        (
            lambda m, x0, t, n, ab: F.mse_loss(loss_of(m, x0, t, n, ab)[0], n, reduction="sum"),
            "mean, not the sum",
        ),
        (lambda m, x0, t, n, ab: F.mse_loss(loss_of(m, x0, t, n, ab)[0], n, reduction="none"), "one number"),
        (lambda m, x0, t, n, ab: F.l1_loss(loss_of(m, x0, t, n, ab)[0], n), "absolute error"),
        (lambda m, x0, t, n, ab: (n**2).mean(), "never asked"),
        (lambda m, x0, t, n, ab: F.mse_loss(m(loss_of(m, x0, t, n, ab)[1], ab[t]).sample, n), "timesteps"),
        (lambda m, x0, t, n, ab: F.mse_loss(m(x0 + n, t).sample, n), "wrong x_t"),
    ],
    "01.4": [
        (lambda x, a, e: x - (1 - each(a)).sqrt() * e, "dimmed"),
        (lambda x, a, e: x - e, "variance 1"),
        (lambda x, a, e: (x - e) / each(a).sqrt(), "variance 1"),
        (lambda x, a, e: (x + (1 - each(a)).sqrt() * e) / each(a).sqrt(), "wrong sign"),
        (lambda x, a, e: (x - (1 - each(a)).sqrt() * e) / each(a), "root"),
        (lambda x, a, e: (x - (1 - each(a)) * e) / each(a).sqrt(), "solve eq. 1.3"),
    ],
    "01.5": [
        (posterior(right_x_t, right_x0), "swapped"),
        (posterior(right_x0, lambda b, bar, p: (1 - p) * bar.sqrt() / (1 - bar)), "one step"),
        (posterior(lambda b, bar, p: b * bar.sqrt() / (1 - bar), right_x_t), "arrives"),
        (
            posterior(lambda b, bar, p: b * p.sqrt(), lambda b, bar, p: (1 - p) * (1 - b).sqrt()),
            "denominator",
        ),
        (posterior(lambda b, bar, p: 0.5, lambda b, bar, p: 0.5), "compare the two coefficients"),
    ],
    "01.6": [
        (lambda x, e, a, p: clean(x, e, a).float(), "whole way at once"),
        (lambda x, e, a, p: (p.sqrt() * clean(x, e, a)).float(), "not put back"),
        (lambda x, e, a, p: x.clone(), "nothing moved"),
        (lambda x, e, a, p: (p.sqrt() * clean(x, e, a) + (1 - a).sqrt() * e).float(), "different levels"),
        (
            lambda x, e, a, p: (p.sqrt() * clean(x, e, a) + (1 - p).sqrt() * torch.randn_like(x)).float(),
            "two calls differ",
        ),
        (lambda x, e, a, p: (p.sqrt() * x + (1 - p).sqrt() * e).float(), "first x0_hat"),
    ],
    "01.7": [
        (lambda v, b, bt: v * b.log() + (1 - v) * bt.log(), "share in [0,1]"),
        (lambda v, b, bt: (frac(v) * b + (1 - frac(v)) * bt).log(), "logarithms"),
        (lambda v, b, bt: (frac(v) * b.log() + (1 - frac(v)) * bt.log()).exp(), "asks for its logarithm"),
        (lambda v, b, bt: frac(v) * bt.log() + (1 - frac(v)) * b.log(), "swapped"),
        (lambda v, b, bt: v * b.log(), "mix log beta"),
    ],
    "01.8": [
        (downhill, "sign is turned"),
        (mean_over_batch, "averaged over the batch"),
        (of_the_logit, "raw logit"),
        (of_the_probability, "vanishes just where"),
        (of_all_classes, "all classes"),
        (lambda classifier, x_t, noise_std, y: torch.zeros_like(x_t), "gradient of log p"),
    ],
    "01.9": [
        (lambda c, u, w: u + w * (c - u), "other convention"),
        (lambda c, u, w: (1 + w) * u - w * c, "away from the class"),
        (lambda c, u, w: (1 + w) * c + w * u, "sum to 1"),
        (lambda c, u, w: c, "expected (1 + w)"),
    ],
    "01.10": [
        (lambda u, x0, m, a, n: (1 - m) * (a.sqrt() * x0 + (1 - a).sqrt() * n) + m * u, "turned round"),
        (lambda u, x0, m, a, n: m * x0 + (1 - m) * u, "clean image into a noisy one"),
        (lambda u, x0, m, a, n: m * (a.sqrt() * x0 + (1 - a).sqrt() * n) + u, "added in the known region"),
        (lambda u, x0, m, a, n: u, "where mask is 1"),
    ],
}
