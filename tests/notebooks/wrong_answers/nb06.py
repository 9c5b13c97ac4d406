"""Stored wrong answers of notebook 06, each with a part of the message that it should get."""

import torch

from cfx_lib.learn.checks.nb06 import my_time, planted_shown, sort_by_label, undo, with_retries
from cfx_lib.methods.edict import Edict
from cfx_lib.methods.time import guided

# ------------------------------------------------------------------------------------------------ 06.1


def _all_at_once(predict, images, batch):
    labels = torch.as_tensor(predict(images))
    return {k: (labels == k).nonzero().flatten() for k in labels.unique().tolist()}


def _one_by_one(predict, images, batch):
    return sort_by_label(predict, images, 1)


def _asked_twice(predict, images, batch):
    sort_by_label(predict, images, batch)
    return sort_by_label(predict, images, batch)


def _masks(predict, images, batch):
    labels = torch.cat([torch.as_tensor(predict(part)) for part in images.split(batch)])
    return {k: labels == k for k in labels.unique().tolist()}


def _empty_class(predict, images, batch):
    labels = torch.cat([torch.as_tensor(predict(part)) for part in images.split(batch)])
    return {k: (labels == k).nonzero().flatten() for k in range(int(labels.max()) + 1)}


def _rows_of_parts(predict, images, batch):
    found = {}
    for part in images.split(batch):
        labels = torch.as_tensor(predict(part))
        for k in labels.unique().tolist():
            found.setdefault(k, []).append((labels == k).nonzero().flatten())
    return {k: torch.cat(v) for k, v in found.items()}


def _a_list(predict, images, batch):
    return list(sort_by_label(predict, images, batch).values())


# ------------------------------------------------------------------------------------------------ 06.2


def _loss(alpha_of=lambda a: (a.sqrt(), (1 - a).sqrt()), shown=None, compared="noise", reduce=torch.mean):
    def wrong(eps, z, t, noise, alpha_bar, condition):
        a, b = alpha_of(alpha_bar[t].to(z).view(-1, 1, 1, 1))
        z_t = z if shown == "clean" else a * z + b * noise
        target = z if compared == "clean" else noise
        return reduce((eps(z_t, t, condition.expand(len(z), -1, -1)) - target).square())

    return wrong


def _one_phrase(eps, z, t, noise, alpha_bar, condition):
    kept = alpha_bar[t].to(z).view(-1, 1, 1, 1)
    return (eps(kept.sqrt() * z + (1 - kept).sqrt() * noise, t, condition) - noise).square().mean()


def _detached(eps, z, t, noise, alpha_bar, condition):
    with torch.no_grad():
        return _loss()(eps, z, t, noise, alpha_bar, condition)


# ------------------------------------------------------------------------------------------------ 06.3


def _b(alpha_bar, below):
    return (1 - below) ** 0.5 - (below * (1 - alpha_bar) / alpha_bar) ** 0.5


# ------------------------------------------------------------------------------------------------ 06.4


def _unmix(x, y, p):
    y = (y - (1 - p) * x) / p
    return (x - (1 - p) * y) / p, y


def _x_first(x, y, eps, level, p):
    (a, b), (x, y) = level.coefficients, _unmix(x, y, p)
    x = (x - b * eps(y, level.t)) / a
    return x, (y - b * eps(x, level.t)) / a


def _both_at_once(x, y, eps, level, p):
    (a, b), (x, y) = level.coefficients, _unmix(x, y, p)
    return (x - b * eps(y, level.t)) / a, (y - b * eps(x, level.t)) / a


def _no_unmixing(x, y, eps, level, p):
    a, b = level.coefficients
    y = (y - b * eps(x, level.t)) / a
    return (x - b * eps(y, level.t)) / a, y


def _unmixed_the_wrong_way(x, y, eps, level, p):
    a, b = level.coefficients
    x = (x - (1 - p) * y) / p
    y = (y - (1 - p) * x) / p
    y = (y - b * eps(x, level.t)) / a
    return (x - b * eps(y, level.t)) / a, y


def _added(x, y, eps, level, p):
    (a, b), (x, y) = level.coefficients, _unmix(x, y, p)
    y = (y + b * eps(x, level.t)) / a
    return (x + b * eps(y, level.t)) / a, y


def _denoised(x, y, eps, level, p):
    return Edict(p, leapfrog=False).denoise_step(x, y, eps, level)


# ------------------------------------------------------------------------------------------------ 06.6


def _edit(up=(0, 1), down=(1, 0), w_up=None, w_down=None, one_copy=False, order=reversed, stream=0):
    """An edit with some mistakes; `up` and `down`: which phrase is for, which against (0: source, 1: target)."""

    def wrong(eps, z, c_source, c_target, levels, w, p):
        phrases, sampler = (c_source, c_target), Edict(p, leapfrog=False)

        def drift(pair, scale):
            scale = w if scale is None else scale
            return lambda s, t: guided(eps(s, t, phrases[pair[0]]), eps(s, t, phrases[pair[1]]), scale)

        x, y = z, z
        for level in levels:
            x, y = sampler.invert_step(x, y, drift(up, w_up), level)
        if down is None:
            return x
        y = x if one_copy else y
        for level in order(levels):
            x, y = sampler.denoise_step(x, y, drift(down, w_down), level)
        return (x, y)[stream] if stream is not None else (x, y)

    return wrong


# ------------------------------------------------------------------------------------------------ 06.7


def _all_again(edit, predict, x, target, attempts):
    for tau, w in attempts:
        x_cf = edit(x, target, tau, w)
    return x_cf


def _from_the_last_attempt(edit, predict, x, target, attempts):
    x_cf, rows = x.clone(), torch.arange(len(x))
    for tau, w in attempts:
        x_cf[rows] = edit(x_cf[rows], target[rows], tau, w)
        rows = rows[predict(x_cf[rows]) != target[rows]]
    return x_cf


def _first_only(edit, predict, x, target, attempts):
    return edit(x, target, *attempts[0])


def _all_targets(edit, predict, x, target, attempts):
    x_cf, rows = x.clone(), torch.arange(len(x))
    for tau, w in attempts:
        x_cf[rows] = edit(x[rows], target, tau, w)
        rows = rows[predict(x_cf[rows]) != target[rows]]
    return x_cf


def _input_where_it_fails(edit, predict, x, target, attempts):
    x_cf = with_retries(edit, predict, x, target, attempts)
    x_cf[2] = x[2]
    return x_cf


def _stops_early(edit, predict, x, target, attempts):
    return with_retries(edit, predict, x, target, attempts[:3])


def _never_stops(edit, predict, x, target, attempts):
    x_cf, rows = x.clone(), torch.arange(len(x))
    for tau, w in attempts:
        x_cf[rows] = edit(x[rows], target[rows], tau, w)
        rows = rows[predict(x_cf[rows]) != target[rows]] if len(rows) else rows
    return x_cf


def _asks_about_all(edit, predict, x, target, attempts):
    x_cf, rows = x.clone(), torch.arange(len(x))
    for tau, w in attempts:
        x_cf[rows] = edit(x[rows], target[rows], tau, w)
        rows = (predict(x_cf) != target).nonzero().flatten()
        if not len(rows):
            break
    return x_cf


# ------------------------------------------------------------------------------------------------ 06.8


def _shown(counted=None, changed=None):
    def wrong(before, after, target):
        wanted = target == 1
        keep = before != wanted if counted is None else counted(before, after, wanted)
        end = after == wanted if changed is None else changed(before, after, wanted)
        return float(end[keep].float().mean()), int(keep.sum())

    return wrong


WRONG = {
    "06.1": [
        (_all_at_once, "at most `batch`"),
        (_one_by_one, "calls where 3 are enough"),
        (_asked_twice, "ask once"),
        (_masks, "these are masks"),
        (_empty_class, "no image got the label 1"),
        (_rows_of_parts, "counted within each part"),
        (_a_list, "expected a dictionary"),
    ],
    "06.2": [
        (_loss(compared="clean"), "with the clean latents"),
        (_loss(shown="clean"), "should see the noised ones"),
        (_loss(lambda a: (a, 1 - a)), "roots are missing"),
        (_loss(lambda a: ((1 - a).sqrt(), a.sqrt())), "changed places"),
        (_loss(reduce=torch.sum), "summed the squares"),
        (_loss(reduce=lambda v: v.mean((1, 2, 3))), "should be one number"),
        (_one_phrase, "every latent wants one"),
        (_detached, "no gradient flows"),
    ],
    "06.3": [
        (lambda alpha_bar, below: ((alpha_bar / below) ** 0.5, _b(alpha_bar, below)), "upside down"),
        (lambda alpha_bar, below: (below / alpha_bar, _b(alpha_bar, below)), "root is missing in a"),
        (lambda alpha_bar, below: ((below / alpha_bar) ** 0.5, -_b(alpha_bar, below)), "wrong sign"),
        (lambda alpha_bar, below: ((below / alpha_bar) ** 0.5, (1 - below) ** 0.5), "put back"),
        (
            lambda alpha_bar, below: ((below / alpha_bar) ** 0.5, (1 - below) ** 0.5 - (1 - alpha_bar) ** 0.5),
            "scaled along",
        ),
        (lambda alpha_bar, below: (_b(alpha_bar, below), (below / alpha_bar) ** 0.5), "changed places"),
        (lambda alpha_bar, below: (below / alpha_bar) ** 0.5, "expected two values"),
    ],
    "06.4": [
        (_x_first, "you undid x before y"),
        (_both_at_once, "undone with the noise of y_inter"),
        (_no_unmixing, "was not undone"),
        (_unmixed_the_wrong_way, "in the wrong order"),
        (_added, "subtract it"),
        (_denoised, "should give the pair from before it"),
        (lambda x, y, eps, level, p: undo(x, y, eps, level, p)[::-1], "return x first"),
        (lambda x, y, eps, level, p: undo(x, y, eps, level, p)[0], "expected two values"),
        (lambda x, y, eps, level, p: undo(x, y, eps, level, 0.9), "another level"),
    ],
    "06.5": [
        (lambda eps_for, eps_against, w: (1 + w) * eps_against - w * eps_for, "changed places"),
        (lambda eps_for, eps_against, w: eps_for - w * eps_against, "add up to 1"),
        (lambda eps_for, eps_against, w: (1 + w) * eps_for + w * eps_against, "subtract it"),
        (lambda eps_for, eps_against, w: eps_against + w * (eps_for - eps_against), "other convention"),
        (lambda eps_for, eps_against, w: eps_for + w * (eps_against - eps_for), "points the wrong way"),
    ],
    "06.6": [
        (_edit(down=(0, 1)), "gives the input back"),
        (_edit(up=(1, 0), down=(0, 1)), "source and target have changed places"),
        (_edit(w_up=0.0), "way up was not steered"),
        (_edit(w_up=0.0, w_down=0.0), "nothing was steered"),
        (_edit(down=None), "stopped at the top"),
        (_edit(one_copy=True), "two copies of x"),
        (_edit(order=list), "reverse order"),
        (_edit(stream=1), "second stream"),
        (_edit(stream=None), "one stream only"),
        (lambda eps, z, c_source, c_target, levels, w, p: my_time(eps, z, c_source, c_target, levels, 2 * w, p), "compare with the library"),
    ],
    "06.7": [
        (_all_again, "tried images again"),
        (_from_the_last_attempt, "starts from the input"),
        (_first_only, "after the first attempt"),
        (_all_targets, "target[rows]"),
        (_input_where_it_fails, "keeps its last attempt"),
        (_stops_early, "was left"),
        (_never_stops, "empty batch"),
        (_asks_about_all, "not edited in this attempt"),
    ],
    "06.8": [
        (_shown(lambda b, a, wanted: torch.ones_like(b)), "all ten faces count"),
        (_shown(changed=lambda b, a, wanted: a != wanted), "did NOT come"),
        (_shown(lambda b, a, wanted: wanted & ~b), "target 1 only"),
        (_shown(lambda b, a, wanted: b == wanted), "in the predicted state already"),
        (
            lambda before, after, target: (
                float((after == (target == 1)).float().mean()),
                planted_shown(before, after, target)[1],
            ),
            "divide by those",
        ),
        (
            lambda before, after, target: (
                float((after != before).float().mean()),
                planted_shown(before, after, target)[1],
            ),
            "changed at all",
        ),
    ],
}  # fmt: skip
