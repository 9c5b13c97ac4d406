"""Wrong answers to the exercises of notebook 03, with a part of the message that each must get."""

import torch
import torch.nn.functional as F


def _chain(diffusion, x_t, start, draw, last=False, rooted=True, quiet=False):
    for i in reversed(range(start)):
        p = diffusion.p_mean_variance(x_t, i)
        scale = p.variance.sqrt() if rooted else p.variance
        x_t = p.mean if quiet or (i == 0 and not last) else p.mean + scale * draw(x_t)
    return x_t


def _filter_no_grad(diffusion, x, start, draw):
    with torch.no_grad():
        return _chain(diffusion, diffusion.q_sample(x, start - 1, draw(x)), start, draw)


def _filter_one_beyond(diffusion, x, start, draw):
    return _chain(diffusion, diffusion.q_sample(x, start, draw(x)), start, draw)


def _filter_noisy_end(diffusion, x, start, draw):
    return _chain(diffusion, diffusion.q_sample(x, start - 1, draw(x)), start, draw, last=True)


def _filter_variance(diffusion, x, start, draw):
    return _chain(diffusion, diffusion.q_sample(x, start - 1, draw(x)), start, draw, rooted=False)


def _filter_means(diffusion, x, start, draw):
    return _chain(diffusion, diffusion.q_sample(x, start - 1, draw(x)), start, draw, quiet=True)


def _filter_never_noised(diffusion, x, start, draw):
    x_t = diffusion.q_sample(x, start - 1, torch.zeros_like(x))
    return _chain(diffusion, x_t, start, draw)


def _filter_one_step(diffusion, x, start, draw):
    return diffusion.x0_hat(diffusion.q_sample(x, start - 1, draw(x)), start - 1)


def _filter_upwards(diffusion, x, start, draw):
    x_t = diffusion.q_sample(x, start - 1, draw(x))
    for i in range(start):
        p = diffusion.p_mean_variance(x_t, i)
        x_t = p.mean + p.variance.sqrt() * draw(x_t)
    return x_t


def _filter_endless(diffusion, x, start, draw):
    x_t = x
    while True:
        x_t = diffusion.ddpm_step(x_t, 0, draw(x))


def _whole(x_adv, x, class_grad, lambda_d):
    return class_grad + lambda_d * (x_adv - x).sign()


def _per_image_norm(x_adv, x):
    difference = x_adv - x
    return difference / difference.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def _normalised(x, pre):
    difference = (x - pre).abs().sum(1, keepdim=True)
    return difference / difference.amax((2, 3), keepdim=True).clamp(min=1e-12)


def _mask_channels(x, pre, size, threshold):
    difference = (x - pre).abs()
    difference = difference / difference.amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
    return F.max_pool2d(difference, size, stride=1, padding=size // 2) > threshold


def _mask_raw(x, pre, size, threshold):
    difference = (x - pre).abs().sum(1, keepdim=True)
    return F.max_pool2d(difference, size, stride=1, padding=size // 2) > threshold


def _mask_batch(x, pre, size, threshold):
    difference = (x - pre).abs().sum(1, keepdim=True)
    return F.max_pool2d(difference / difference.max(), size, stride=1, padding=size // 2) > threshold


def _mask_mean(x, pre, size, threshold):
    return F.avg_pool2d(_normalised(x, pre), size, stride=1, padding=size // 2) > threshold


def _mask_inverted(x, pre, size, threshold):
    return F.max_pool2d(_normalised(x, pre), size, stride=1, padding=size // 2) <= threshold


def _mask_nan(x, pre, size, threshold):
    difference = (x - pre).abs().sum(1, keepdim=True)
    difference = difference / difference.amax((2, 3), keepdim=True)
    return ~(F.max_pool2d(difference, size, stride=1, padding=size // 2) <= threshold)


def _refine(kind):
    def refine(diffusion, x, pre, mask, start, draw):
        if kind == "swapped":
            mask = ~mask
        x_t = pre if kind == "clean" else diffusion.q_sample(pre, start - 1, draw(x))
        for i in reversed(range(start)):
            if kind == "bare":
                x_t = torch.where(mask, x_t, x)
            elif kind == "level":
                x_t = torch.where(mask, x_t, diffusion.q_sample(x, start - 1, draw(x)))
            elif kind not in ("late", "never"):
                x_t = torch.where(mask, x_t, diffusion.q_sample(x, i, draw(x)))
            p = diffusion.p_mean_variance(x_t, i)
            x_t = p.mean if i == 0 else p.mean + p.variance.sqrt() * draw(x_t)
            if kind == "late":
                x_t = torch.where(mask, x_t, diffusion.q_sample(x, i, draw(x)))
        return x_t if kind == "unpasted" else torch.where(mask, x_t.clamp(-1, 1), x)

    return refine


def _lifted(p_before, p_after):
    return (p_before < 0.5) & (p_after > 0.5)


def _share(p_before, p_after):
    return float(_lifted(p_before, p_after).sum() / (p_before < 0.5).sum())


WRONG = {
    "03.1": [
        (_filter_no_grad, "no gradient"),
        (_filter_one_beyond, "one beyond"),
        (_filter_noisy_end, "never clean"),
        (_filter_variance, "square root"),
        (_filter_means, "means only"),
        (_filter_never_noised, "not noised"),
        (_filter_one_step, "one-step estimate"),
        (_filter_upwards, "compare with the hint"),
        (_filter_endless, "end at index 0"),
        (lambda diffusion, x, start, draw: None, "None"),
    ],
    "03.2": [
        (
            lambda x_adv, x, class_grad, lambda_d, step: (
                x_adv + step * _whole(x_adv, x, class_grad, lambda_d).sign()
            ).clamp(-1, 1),
            "goes up",
        ),
        (
            lambda x_adv, x, class_grad, lambda_d, step: (
                x_adv - step * _whole(x, x_adv, class_grad, lambda_d).sign()
            ).clamp(-1, 1),
            "wrong sign",
        ),
        (
            lambda x_adv, x, class_grad, lambda_d, step: (x_adv - step * class_grad.sign()).clamp(-1, 1),
            "distance term is missing",
        ),
        (
            lambda x_adv, x, class_grad, lambda_d, step: (
                x_adv - step * _whole(x_adv, x, class_grad, lambda_d)
            ).clamp(-1, 1),
            "plain gradient descent",
        ),
        (
            lambda x_adv, x, class_grad, lambda_d, step: (
                x_adv - step * (class_grad.sign() + lambda_d * (x_adv - x).sign())
            ).clamp(-1, 1),
            "class gradient alone",
        ),
        (
            lambda x_adv, x, class_grad, lambda_d, step: (
                x_adv - step * _whole(x_adv, x, class_grad, lambda_d).sign()
            ),
            "left [-1, 1]",
        ),
        (
            lambda x_adv, x, class_grad, lambda_d, step: (
                x_adv - step * _whole(x_adv, x, class_grad, lambda_d).sign()
            ).clamp(0, 1),
            "[0, 1]",
        ),
    ],
    "03.3": [
        (lambda x_adv, x: 2 * (x_adv - x), "squared"),
        (lambda x_adv, x: (x_adv - x) / (x_adv - x).norm(), "whole batch"),
        (lambda x_adv, x: F.normalize(x_adv - x, dim=1), "every pixel"),
        (lambda x_adv, x: (x_adv - x).sign(), "l1"),
        (lambda x_adv, x: _per_image_norm(x, x_adv), "away from x"),
        (_per_image_norm, "norm is 0"),
        (lambda x_adv, x: (x_adv - x).flatten(1).norm(dim=1), "shape"),
    ],
    "03.4": [
        (_mask_channels, "three channels"),
        (_mask_raw, "not normalised"),
        (_mask_batch, "whole batch"),
        (lambda x, pre, size, threshold: _normalised(x, pre) > threshold, "dilation is missing"),
        (_mask_mean, "averaged"),
        (_mask_inverted, "swapped"),
        (_mask_nan, "0 divided by 0"),
        (
            lambda x, pre, size, threshold: F.max_pool2d(
                _normalised(x, pre), size, stride=1, padding=size // 2
            ),
            "True and False",
        ),
    ],
    "03.5": [
        (_refine("swapped"), "swapped"),
        (_refine("unpasted"), "exactly the input"),
        (_refine("bare"), "one level of noise"),
        (_refine("level"), "the level i"),
        (_refine("late"), "compose first"),
        (_refine("never"), "every step"),
        (_refine("clean"), "line 4"),
        (lambda diffusion, x, pre, mask, start, draw: torch.where(mask, pre, x), "in order"),
    ],
    "03.6": [
        (lambda iterations, start, backward: iterations * start * (1 + backward), "refinement is one more"),
        (lambda iterations, start, backward: (iterations + 1) * start * (1 + backward), "needs no gradient"),
        (lambda iterations, start, backward: (iterations + 1) * start, "way back"),
        (lambda iterations, start, backward: (2 * iterations + 1) * start, "backward=True"),
        (lambda iterations, start, backward: iterations * start * (start + 1) // 2, "DiME"),
        (lambda iterations, start, backward: "many", "expected a number"),
    ],
    "03.7": [
        (lambda p_before, p_after: (float((p_after > 0.5).float().mean()), 0.0), "there before"),
        (
            lambda p_before, p_after: (
                float(_lifted(p_before, p_after).float().mean()),
                float((p_after - p_before).mean()),
            ),
            "all faces",
        ),
        (
            lambda p_before, p_after: (
                float(((p_before < 0.5) != (p_after < 0.5)).float().mean()),
                float((p_after - p_before).mean()),
            ),
            "other direction",
        ),
        (
            lambda p_before, p_after: (_share(p_before, p_after), float((p_after - p_before).abs().mean())),
            "size of the change",
        ),
        (
            lambda p_before, p_after: (_share(p_before, p_after), float((p_before - p_after).mean())),
            "after minus before",
        ),
        (
            lambda p_before, p_after: (float((p_after - p_before).mean()), _share(p_before, p_after)),
            "other order",
        ),
        (lambda p_before, p_after: _share(p_before, p_after), "two numbers"),
    ],
}
