"""Checks of notebook 07 (HiT)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfx_lib.learn.checks import Wrong, check, close, number, shaped
from cfx_lib.learn.checks.toys import images, same

# ------------------------------------------------------------------------------------ 07.1 attention weights


def attention_weights(q: Tensor, k: Tensor) -> Tensor:
    """a(v, x^q, x^t) of Eq. 6.4 (thesis): q (N,h,d) of the class token, k (N,h,P,d) of the patches -> (N,h,P)."""
    return (torch.einsum("nhd,nhpd->nhp", q, k) / q.shape[-1] ** 0.5).softmax(-1)


@check(
    "07.1",
    dots=1,
    minutes=5,
    hint='`scores = torch.einsum("nhd,nhpd->nhp", q, k) / q.shape[-1] ** 0.5`, then `scores.softmax(-1)`.',
    reference=attention_weights,
)
def _(answer: Callable) -> None:
    q, k = torch.randn(3, 2, 4), torch.randn(3, 2, 7, 4)
    got = answer(q, k)
    shaped(got, (3, 2, 7), "the weights")
    scores = torch.einsum("nhd,nhpd->nhp", q, k)
    if same(got, scores / 2) or same(got, scores):
        raise Wrong(
            "these are scores, not yet weights: the softmax over the patches is missing, so they do not sum to 1."
        )
    if same(got, scores.softmax(-1)):
        raise Wrong("divide the scores by the root of d, the width of a head, before the softmax (Eq. 7.1).")
    if same(got, (scores / 4).softmax(-1)):
        raise Wrong("you divided by d; Eq. 7.1 divides by the ROOT of d.")
    if same(got, (scores / 7**0.5).softmax(-1)):
        raise Wrong(
            "you divided by the root of the number of patches; d is the width of a head, q.shape[-1]."
        )
    if same(got, (scores / 8**0.5).softmax(-1)):
        raise Wrong("d is the width of ONE head, q.shape[-1], not of all heads together.")
    if same(got, scores.softmax(-1) / 2):
        raise Wrong("the root of d divides the scores BEFORE the softmax.")
    for dim, what in ((0, "images"), (1, "heads")):
        if same(got, (scores / 2).softmax(dim)):
            raise Wrong(
                f"your softmax runs over the {what}; it shares out one unit of attention among the patches, `dim=-1`."
            )
    if same(got, F.normalize((scores / 2).exp(), dim=-1)):
        raise Wrong("you divided by a length; a softmax divides by the SUM of the exponentials.")
    close(got, attention_weights(q, k), "compare with Eq. 7.1, for the one query of each head.")


# ------------------------------------------------------------------------------------ 07.2 the vectors of the patches


def patch_vectors(weights: Tensor, v: Tensor, w_o: Tensor) -> Tensor:
    """v'(v) of Eq. 6.5 (thesis): weights (N,h,P), values (N,h,P,d), w_o (D, h d) as nn.Linear keeps it -> (N,P,D)."""
    split = w_o.view(len(w_o), v.shape[1], v.shape[3])
    return torch.einsum("nhp,nhpk,dhk->npd", weights, v, split)


@check(
    "07.2",
    dots=2,
    minutes=10,
    hint='`split = w_o.view(len(w_o), heads, d)` is one matrix a head; then `torch.einsum("nhp,nhpk,dhk->npd", weights, v, split)`.',
    reference=patch_vectors,
)
def _(answer: Callable) -> None:
    n, h, p, d = 2, 3, 5, 4
    weights, v, w_o = torch.rand(n, h, p).softmax(-1), torch.randn(n, h, p, d), torch.randn(h * d, h * d)
    got, want = answer(weights, v, w_o), patch_vectors(weights, v, w_o)
    if isinstance(got, Tensor) and got.shape == (n, h * d):
        raise Wrong("this is already the sum over the patches. Keep them apart: (N,P,D), one vector a patch.")
    if isinstance(got, Tensor) and got.shape == (n, h, p, h * d):
        raise Wrong("these are vectors of each head; sum over the heads, Eq. 7.3.")
    shaped(got, (n, p, h * d), "the vectors")
    split = w_o.view(h * d, h, d)
    if same(got, patch_vectors(weights, v, w_o.T.contiguous())):
        raise Wrong(
            "W_o is transposed. `nn.Linear` keeps a matrix (out, in), and computes `x @ w.T`: the heads lie along its SECOND dimension."
        )
    if same(got, torch.einsum("nhp,nhpk,dkh->npd", weights, v, w_o.view(h * d, d, h))):
        raise Wrong(
            "you cut W_o into heads the wrong way: the columns of one head stand together, `w_o.view(D, heads, d)`, not interleaved."
        )
    if same(got, want / h):
        raise Wrong(
            "you averaged over the heads. Their outputs are concatenated and multiplied: a SUM over heads."
        )
    if same(got, torch.einsum("nhpk,dhk->npd", v, split)):
        raise Wrong("the attention weights are missing: each patch counts with its weight, head by head.")
    if same(got, torch.einsum("nhp,nhpk,dhk->npd", weights.mean(1, True).expand_as(weights), v, split)):
        raise Wrong("you averaged the weights over the heads; every head has its own.")
    if same(got, torch.einsum("nhp,nhpk->nphk", weights, v).flatten(2)):
        raise Wrong("the multiplication by W_o is missing: these are the concatenated heads.")
    close(
        got,
        want,
        "compare with Eq. 7.3: sum over heads of weight times value times that head's part of W_o.",
        atol=1e-4,
    )


# ------------------------------------------------------------------------------------ 07.3 the block

Map = Callable[[Tensor], Tensor]
Attend = Callable[[Tensor, Tensor], Tensor]


def hit_block(
    cls: Tensor, patches: Tensor, attend: Attend, mlp: Map, norm_1: Map, norm_2: Map
) -> tuple[Tensor, Tensor]:
    """Eq. 6.7 (thesis), with the LayerNorms: class token (N,1,D), patches (N,P,D) -> both after the block."""
    return cls + attend(norm_1(cls), norm_1(patches)), patches + mlp(norm_2(patches))


def _block(
    cls: Tensor, patches: Tensor, attend: Attend, mlp: Map, norm_1: Map, norm_2: Map,
    *, query="normed", keys="patches", skip=True, skip_patches=True, mlp_on="patches", second=None, mix=False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The block with one thing wrong where a keyword says so."""
    q = {"normed": norm_1(cls), "bare": cls, "norm_2": norm_2(cls)}[query]
    whole = {"patches": patches, "all": torch.cat([cls, patches], 1)}.get(keys, patches)
    kv = patches if keys == "bare" else norm_1(whole)
    new = (cls if skip else 0) + attend(q, kv)
    if mix:
        patches = patches + attend(norm_1(patches), norm_1(patches))
    other = norm_2 if second is None else {"norm_1": norm_1, "none": lambda t: t}[second]
    if mlp_on == "both":
        new = new + mlp(norm_2(new))
    after = patches if mlp_on == "cls" else (patches if skip_patches else 0) + mlp(other(patches))
    return (new + mlp(norm_2(new)) if mlp_on == "cls" else new), after


_BLOCK_MISTAKES = (
    ({"keys": "all"}, "the class token is among the keys and values: it then attends to itself, as in Eq. 7.5. In HiT only the patches are."),
    ({"mlp_on": "both"}, "the class token passes through the MLP: a non-linear function of the sum, which cannot be taken apart any more. Only the patches do."),
    ({"mlp_on": "cls"}, "the MLP works on the class token, and not on the patches. It has to be the other way round."),
    ({"mix": True}, "the patches attend to each other, as in a ViT: now each holds something of all others."),
    ({"skip": False}, "the skip connection of the class token is missing: the attention is ADDED to it, so that it becomes a sum over layers."),
    ({"skip_patches": False}, "the skip connection of the patches is missing: the MLP's output is added to them."),
    ({"query": "bare"}, "the query is not normalised: `norm_1` is applied to the class token, too."),
    ({"query": "norm_2"}, "the query is normalised by `norm_2`; the same `norm_1` serves the class token and the patches."),
    ({"keys": "bare"}, "the patches are not normalised before the attention."),
    ({"second": "none"}, "the patches are not normalised before the MLP: `norm_2`."),
    ({"second": "norm_1"}, "before the MLP it is `norm_2`."),
)  # fmt: skip


@check(
    "07.3",
    dots=2,
    minutes=8,
    hint="Two lines: `cls + attend(norm_1(cls), norm_1(patches))` and `patches + mlp(norm_2(patches))`; return both.",
    reference=hit_block,
)
def _(answer: Callable) -> None:
    d = 6
    norm_1, norm_2 = nn.LayerNorm(d), nn.LayerNorm(d)
    for norm in (norm_1, norm_2):
        nn.init.normal_(norm.weight, 1, 0.5)
        nn.init.normal_(norm.bias, 0, 0.5)
    first, second, value = nn.Linear(d, 2 * d), nn.Linear(2 * d, d), nn.Linear(d, d)

    def attend(query: Tensor, keys: Tensor) -> Tensor:
        return (query @ keys.transpose(1, 2)).softmax(-1) @ value(keys)

    def mlp(tokens: Tensor) -> Tensor:
        return second(F.gelu(first(tokens)))

    cls, patches = torch.randn(2, 1, d), torch.randn(2, 4, d)
    given = (cls, patches, attend, mlp, norm_1, norm_2)
    with torch.no_grad():
        got = answer(*given)
        if not isinstance(got, (tuple, list)) or len(got) != 2:
            raise Wrong(
                "return two tensors: the class token (N,1,D) and the patches (N,P,D) after the block."
            )
        shaped(got[0], (2, 1, d), "the class token")
        shaped(got[1], (2, 4, d), "the patches")
        for change, message in _BLOCK_MISTAKES:
            if all(same(a, b) for a, b in zip(got, _block(*given, **change), strict=True)):
                raise Wrong(message)
        new, after = hit_block(*given)
    if same(got[1], patches + mlp(norm_2(patches + got[0]))) or not same(got[1], after):
        close(
            got[1],
            after,
            "the patches differ from Eq. 7.6: each is itself plus the MLP of itself, and of nothing else.",
        )
    close(
        got[0],
        new,
        "the class token differs from Eq. 7.6: itself plus the attention over the patches as they came in.",
    )


# ------------------------------------------------------------------------------------ 07.4 through the LayerNorm


def through_layernorm(parts: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Shares (N,M,D) of a token, its sum over M -> shares (N,M,D) of LayerNorm(token); mean and bias in equal shares."""
    token, m = parts.sum(1, keepdim=True), parts.shape[1]
    sigma = (token.var(-1, unbiased=False, keepdim=True) + eps).sqrt()
    return (parts - token.mean(-1, keepdim=True) / m) / sigma * weight + bias / m


@check(
    "07.4",
    dots=2,
    minutes=10,
    hint="`token = parts.sum(1, keepdim=True)` has the statistics: its mean over -1, and `(token.var(-1, unbiased=False, keepdim=True) + eps).sqrt()`. "
    "Each of the M parts gets `1 / M` of the mean and of the bias.",
    reference=through_layernorm,
)
def _(answer: Callable) -> None:
    n, m, d, eps = 2, 5, 8, 1e-6
    parts = torch.randn(n, m, d) + torch.rand(n, m, 1)
    weight, bias = torch.rand(d) + 0.5, torch.randn(d)
    got, want = answer(parts, weight, bias, eps), through_layernorm(parts, weight, bias, eps)
    shaped(got, (n, m, d), "the shares")
    token = parts.sum(1, keepdim=True)
    mean, var = token.mean(-1, keepdim=True), token.var(-1, unbiased=False, keepdim=True)
    sigma = (var + eps).sqrt()
    if same(got, F.layer_norm(parts, (d,), weight, bias, eps)) or same(
        got, F.layer_norm(parts, (d,), weight, bias / m, eps)
    ):
        raise Wrong(
            "you normalised every part by itself. The statistics are those of the token, the SUM of the parts: one number an image."
        )
    if same(got, (parts - mean) / sigma * weight + bias / m):
        raise Wrong(
            "every part gave up the WHOLE mean, so that it is taken away M times: each has to give up 1/M of it."
        )
    if same(got, (parts - mean / m) / sigma * weight + bias):
        raise Wrong("every part got the whole bias, so that it comes in M times: each gets 1/M of it.")
    if same(got, (parts - mean / m) / sigma * weight):
        raise Wrong("the bias of the LayerNorm is missing: 1/M of it for every part.")
    if same(got, parts / sigma * weight + bias / m):
        raise Wrong("the mean was not taken away: 1/M of the token's mean from every part.")
    if same(got, (parts - mean / m) / sigma + bias / m):
        raise Wrong("the weight of the LayerNorm is missing.")
    if same(got, (parts - mean / m) / var * weight + bias / m):
        raise Wrong("you divided by the variance; its ROOT is wanted.")
    if same(got, (parts - mean / m) / (token.var(-1, keepdim=True) + eps).sqrt() * weight + bias / m):
        raise Wrong("the LayerNorm divides by D, not D - 1: `var(-1, unbiased=False)`.")
    if same(got, (parts - parts.mean(-1, keepdim=True)) / sigma * weight + bias / m):
        raise Wrong(
            "this sums to the right token: each part gave up its OWN mean. A choice as good as any (see below), but here all parts "
            "are to give up the same, 1/M of the token's mean."
        )
    close(
        got.sum(1),
        F.layer_norm(token[:, 0], (d,), weight, bias, eps),
        "the shares do not sum to the LayerNorm of the token.",
        atol=1e-4,
    )
    close(
        got,
        want,
        "the sum is right, the shares are not: all parts get the same share of mean and bias.",
        atol=1e-4,
    )
    large = answer(parts * 1e-3, weight, bias, 1e-2)
    close(
        large,
        through_layernorm(parts * 1e-3, weight, bias, 1e-2),
        "`eps` is added to the variance, under the root; here it is large.",
        atol=1e-4,
    )


# ------------------------------------------------------------------------------------ 07.5 the decomposition


def my_contributions(
    vectors: Tensor, cls: Tensor, b_o: Tensor, weight: Tensor, bias: Tensor, eps: float, head: Tensor
) -> Tensor:
    """Eq. 6.8 (thesis), continued through LayerNorm and head: vectors (N,L,P,D), cls (D,), b_o (L,D) -> (N,L,P,K)."""
    _, layers, patches, _ = vectors.shape
    parts = vectors + b_o[:, None] / patches + cls / (layers * patches)
    shares = through_layernorm(parts.flatten(1, 2), weight, bias, eps)
    return (shares @ head.T).view(*vectors.shape[:3], len(head))


def _decomposed(
    vectors: Tensor, cls: Tensor, b_o: Tensor, weight: Tensor, bias: Tensor, eps: float, head: Tensor,
    *, token=None, offset=None, norm="whole",
) -> Tensor:  # fmt: skip
    """The decomposition with one thing wrong: the divisor of `token` or `offset` (0: left out), where the LayerNorm acts."""
    _, layers, patches, _ = vectors.shape
    token, offset = (layers * patches if token is None else token), patches if offset is None else offset
    parts = vectors + (b_o[:, None] / offset if offset else 0) + (cls / token if token else 0)
    if norm == "none":
        return parts @ head.T
    if norm == "layers":
        shares = torch.stack([through_layernorm(parts[:, k], weight, bias, eps) for k in range(layers)], 1)
    elif norm == "whole":
        shares = through_layernorm(parts.flatten(1, 2), weight, bias, eps).view_as(parts)
    else:
        shares = F.layer_norm(parts, parts.shape[-1:], weight, bias, eps)
    return shares @ head.T


@check(
    "07.5",
    dots=3,
    minutes=15,
    hint="`parts = vectors + b_o[:, None] / patches + cls / (layers * patches)`; then your `through_layernorm(parts.flatten(1, 2), weight, bias, eps)`, "
    "`@ head.T`, and back to (N,L,P,K) with `view`.",
    reference=my_contributions,
)
def _(answer: Callable) -> None:
    n, layers, patches, d, classes, eps = 2, 3, 4, 6, 5, 1e-6
    given = (
        torch.randn(n, layers, patches, d), torch.randn(d), torch.randn(layers, d), torch.rand(d) + 0.5,
        torch.randn(d), eps, torch.randn(classes, d),
    )  # fmt: skip
    got = answer(*given)
    shaped(got, (n, layers, patches, classes), "the contributions")
    mistakes = {
        "the LayerNorm is left out, as in Eq. 7.7: the sum is then not the logit. Send the parts through it before the head.": {"norm": "none"},
        "every layer was normalised by itself; the LayerNorm stands at the end, over the sum of ALL layers and patches.": {"norm": "layers"},
        "every part was normalised by itself; the statistics are of the sum of all of them.": {"norm": "each"},
        "the class token is left out. It is the same for every image, but it is part of the sum: 1/(LP) of it in every part.": {"token": 0},
        "the class token is divided by the number of patches only: with L layers it comes in L times.": {"token": patches},
        "the class token is not divided: it comes in L P times.": {"token": 1},
        "the bias b_o of the output projection is left out: 1/P of it for each patch of its layer.": {"offset": 0},
        "the bias b_o is not divided: every patch of a layer gets 1/P of it.": {"offset": 1},
        "b_o was divided by L P. Each layer has its own b_o, so it is shared out among its P patches only.": {"offset": layers * patches},
    }  # fmt: skip
    for message, change in mistakes.items():
        if same(got, _decomposed(*given, **change)):
            raise Wrong(message)
    token = given[0].sum((1, 2)) + given[2].sum(0) + given[1]
    logit = F.layer_norm(token, (d,), given[3], given[4], eps) @ given[6].T
    close(
        got.sum((1, 2)),
        logit,
        "summed over layers and patches these are not the logits without the head's bias.",
        atol=1e-4,
    )
    close(
        got,
        my_contributions(*given),
        "the sum is right, the shares are not: compare with Eqs. 7.8 and 7.9.",
        atol=1e-4,
    )


# ------------------------------------------------------------------------------------ 07.6 hide patches


def hide_each_patch(classifier: Map, x: Tensor, target: Tensor, patch: int, colour: float) -> Tensor:
    """How far the target's logit falls when one patch is painted: x (N,C,H,W), target (N,) -> (N, H/patch, W/patch)."""

    def logit(pictures: Tensor) -> Tensor:
        return classifier(pictures).gather(1, target[:, None])[:, 0]

    rows, columns = x.shape[2] // patch, x.shape[3] // patch
    fall = torch.zeros(len(x), rows, columns)
    for r in range(rows):
        for c in range(columns):
            painted = x.clone()
            painted[:, :, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch] = colour
            fall[:, r, c] = logit(x) - logit(painted)
    return fall


def _hidden(classifier: Map, x: Tensor, target: Tensor, patch: int, colour: float, how: str = "") -> Tensor:
    """The falls with one thing wrong."""
    rows, columns, fall, last = x.shape[2] // patch, x.shape[3] // patch, {}, x
    score = {"probability": lambda z: z.softmax(1), "log p": lambda z: z.log_softmax(1)}.get(how, lambda z: z)

    def value(pictures: Tensor) -> Tensor:
        out = score(classifier(pictures))
        return out.amax(1) if how == "largest" else out.gather(1, target[:, None])[:, 0]

    for r in range(rows):
        for c in range(columns):
            painted = (last if how == "more and more" else x).clone()
            painted[:, :, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch] = (
                0 if how == "black" else colour
            )
            if how == "kept":
                kept = torch.zeros_like(x) + colour
                where = (
                    slice(None),
                    slice(None),
                    slice(r * patch, (r + 1) * patch),
                    slice(c * patch, (c + 1) * patch),
                )
                kept[where] = x[where]
                painted = kept
            fall[r, c] = value(painted) if how in ("logit", "kept") else value(x) - value(painted)
            last = painted
    whole = torch.stack([torch.stack([fall[r, c] for c in range(columns)], 1) for r in range(rows)], 1)
    return -whole if how == "sign" else whole


@check(
    "07.6",
    dots=1,
    minutes=8,
    hint="Two loops over rows and columns; inside, `painted = x.clone()`, paint the square `[:, :, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch]`, "
    "and the logit of `x` minus the logit of `painted`.",
    reference=hide_each_patch,
)
def _(answer: Callable) -> None:
    x, target, patch, colour = images(3, 2, 8, 12), torch.tensor([1, 0, 2]), 4, 0.3
    weight, warp = torch.randn(2 * 8 * 12, 3) * 0.3, torch.randn(2 * 8 * 12, 5) * 0.2

    def classifier(pictures: Tensor) -> Tensor:
        flat = pictures.flatten(1)
        return flat @ weight + (flat @ warp).tanh() @ warp[:5, :3] * 4

    given = (classifier, x, target, patch, colour)
    got = answer(*given)
    if isinstance(got, Tensor) and got.shape == (3, 3, 2):
        raise Wrong("rows and columns have changed places: (N, H / patch, W / patch).")
    shaped(got, (3, 2, 3), "the falls")
    mistakes = {
        "sign": "a fall is positive: the logit of the whole image MINUS that of the painted one.",
        "probability": "this is the fall of the probability; the logit is a sum of contributions, so take the logit.",
        "log p": "this is the fall of log p, in which the other classes' logits take part; take the logit itself.",
        "more and more": "you painted one patch after the other into the same image. Only ONE is hidden at a time: clone x anew for each.",
        "logit": "this is the logit of the painted images; how far it FELL is wanted.",
        "kept": "you kept one patch and painted all others.",
        "black": "paint with `colour`, not with 0.",
        "largest": "you took the largest logit; each image has its own target.",
    }
    for how, message in mistakes.items():
        if same(got, _hidden(*given, how)):
            raise Wrong(message)
    close(
        got,
        hide_each_patch(*given),
        "compare patch by patch: logit of the target before minus after painting it.",
        atol=1e-4,
    )


# ------------------------------------------------------------------------------------ 07.7 deletion


def deletion_curve(
    classifier: Map, x: Tensor, maps: Tensor, target: Tensor, colour: float | Tensor
) -> Tensor:
    """P(target) while patches are painted, most salient first: x (N,C,H,W), maps (N,h,w) -> (N, h w + 1)."""
    return _curve(classifier, x, maps.to(x.device), target, colour)


def _curve(
    classifier: Map, x: Tensor, maps: Tensor, target: Tensor, colour: float | Tensor, how: str = ""
) -> Tensor:
    """The curve with one thing wrong."""
    order = maps.flatten(1).argsort(dim=1, descending=how != "ascending", stable=True)
    place = (order if how == "one argsort" else order.argsort(1)).view_as(maps)
    if how == "magnitude":
        place = maps.abs().flatten(1).argsort(dim=1, descending=True, stable=True).argsort(1).view_as(maps)
    if how == "batch":
        place = place[:1].expand_as(place)
    place = place.repeat_interleave(x.shape[2] // maps.shape[1], 1).repeat_interleave(
        x.shape[3] // maps.shape[2], 2
    )[:, None]
    curve = []
    for k in range(maps[0].numel() + 1):
        hidden = place == k - 1 if how == "one by one" else place < k
        hidden = ~hidden if how == "insertion" else hidden
        out = classifier(torch.where(hidden, torch.zeros_like(x) + colour, x))
        out = out if how == "logit" else out.softmax(1)
        curve.append(out.amax(1) if how == "largest" else out.gather(1, target[:, None])[:, 0])
    curve = torch.stack(curve, 1)
    return {"first": curve[:, 1:], "last": curve[:, :-1], "mean": curve.mean(0)}.get(how, curve)


@check(
    "07.7",
    dots=2,
    minutes=10,
    hint="`maps.flatten(1).argsort(dim=1, descending=True).argsort(1)` is each patch's place in the order (0: first); make it as large as the image with "
    "`repeat_interleave`, twice. At step k everything with a place below k is painted.",
    reference=deletion_curve,
)
def _(answer: Callable) -> None:
    x, target, colour = (
        images(3, 3, 6, 9),
        torch.tensor([2, 0, 1]),
        torch.tensor([-0.2, 0.0, 0.1])[:, None, None],
    )
    weight, maps = torch.randn(162, 3) * 0.25, torch.randn(3, 2, 3)

    def classifier(pictures: Tensor) -> Tensor:
        return pictures.flatten(1) @ weight

    given = (classifier, x, maps, target, colour)
    got = answer(*given)
    for how, message in (
        ("first", "the start is missing: with k = 0 nothing is painted yet."),
        ("last", "the end is missing: with k = h w everything is painted."),
        ("mean", "this is the mean over the images; every image has its own curve."),
    ):
        if isinstance(got, Tensor) and same(got, _curve(*given, how)):
            raise Wrong(message)
    shaped(got, (3, 7), "the curves")
    mistakes = {
        "ascending": "the LEAST salient patches went first: sort in descending order.",
        "one argsort": "one `argsort` says which patch comes k-th. You need the place of each patch: the `argsort` of that.",
        "insertion": "this is insertion: everything is painted at first. Deletion begins with the whole image.",
        "one by one": "each step shows what it painted before again. Deleted patches stay deleted: all with a place BELOW k.",
        "logit": "these are logits; the curve is of the probability.",
        "largest": "you took the largest probability; the curve follows the target, also when another class takes the lead.",
        "magnitude": "you sorted by magnitude: patches that speak AGAINST the class went first as well. The largest come first, the most negative last.",
        "batch": "you used the order of the first image for all; each has its own map.",
    }
    for how, message in mistakes.items():
        if same(got, _curve(*given, how)):
            raise Wrong(message)
    close(
        got,
        deletion_curve(*given),
        "compare step by step: at step k the k most salient patches of each image are painted.",
        atol=1e-5,
    )


# ------------------------------------------------------------------------------------ 07.8 count


def hit_macs(image: int, patch: int, dim: int, depth: int, classes: int) -> int:
    """Multiplications of a HiT without pooling for one image with 3 channels, MLP ratio 4 (thesis, Table 6.1)."""
    patches = (image // patch) ** 2
    embedding = patches * 3 * patch**2 * dim
    attention = 2 * patches * dim**2 + 2 * dim**2 + 2 * patches * dim
    mlp = patches * 8 * dim**2
    return embedding + depth * attention + (depth - 1) * mlp + dim * classes


def vit_macs(image: int, patch: int, dim: int, depth: int, classes: int) -> int:
    """The same of a ViT: all tokens attend to all, all pass the MLP of every block."""
    patches = (image // patch) ** 2
    tokens = patches + 1
    block = 12 * tokens * dim**2 + 2 * tokens**2 * dim
    return patches * 3 * patch**2 * dim + depth * block + dim * classes


def _counted(image: int, patch: int, dim: int, depth: int, classes: int, **changed: int) -> int:
    """The count with one term counted wrongly: `head`, `embedding`, `channels`, `mlps`, `queries`, `keys`, `scores`, `times`."""
    patches = (image // patch) ** 2
    one = {
        "head": 1,
        "embedding": 1,
        "channels": 3,
        "mlps": depth - 1,
        "queries": 2,
        "keys": patches,
        "scores": 2,
        "times": 1,
    }
    one |= changed
    embedding = one["embedding"] * patches * one["channels"] * patch**2 * dim
    attention = 2 * one["keys"] * dim**2 + one["queries"] * dim**2 + one["scores"] * patches * dim
    return one["times"] * (
        embedding + depth * attention + one["mlps"] * patches * 8 * dim**2 + one["head"] * dim * classes
    )


@check(
    "07.8",
    dots=2,
    minutes=10,
    hint="A linear layer of n tokens from a to b features costs n a b. In a block: keys and values of P patches (2 P D^2), query and output of ONE token "
    "(2 D^2), scores and weighted sum (2 P D), the MLP D -> 4D -> D of P patches (8 P D^2), which the last block has not.",
    reference=hit_macs,
)
def _(answer: Callable) -> None:
    sizes = {"image": 96, "patch": 8, "dim": 48, "depth": 5, "classes": 11}
    got, want, patches = number(answer(**sizes)), hit_macs(**sizes), (96 // 8) ** 2
    mistakes = (
        ({"mlps": 5}, "you counted an MLP in the last block. Its output never reaches the class token: HiT does not have it."),
        ({"times": 2}, "this is twice the number: a multiplication with its addition counts as one (the papers call these FLOPs, too)."),
        ({"head": 0}, "the head is missing: dim x classes."),
        ({"embedding": 0}, "the embedding of the patches is missing: each of them goes from 3 patch^2 numbers to dim."),
        ({"channels": 1}, "a patch has 3 patch^2 numbers: an image has three channels."),
        ({"queries": 2 * patches}, "queries and outputs are those of ONE token, the class token, not of every patch. This is what HiT saves."),
        ({"queries": 1}, "query AND output projection cost dim^2 each."),
        ({"queries": 0}, "the query's and the output's projection of the class token are missing: 2 dim^2 a block."),
        ({"scores": 0}, "the products of query and keys, and of weights and values, are missing: P dim each."),
        ({"scores": 1}, "both the scores (query times keys) and the weighted sum of the values cost P dim."),
        ({"scores": 2 * patches}, "in HiT one query meets P keys: 2 P dim, not 2 P^2 dim."),
        ({"keys": patches + 1}, "the class token is no key and no value of HiT: P of them, not P + 1."),
    )  # fmt: skip
    for change, message in mistakes:
        if got == _counted(**sizes, **change):
            raise Wrong(message)
    if got == vit_macs(**sizes):
        raise Wrong("this is the count of a ViT, in which all tokens attend to all.")
    if math.isclose(got, want, rel_tol=1e-12):
        got = want
    if got != want:
        raise Wrong(
            f"for {sizes} it is {want:,}; you returned {got:,}. Count embedding, attention, MLPs and head one after the other."
        )
    released = {"image": 224, "patch": 16, "dim": 768, "depth": 12, "classes": 1000}
    if number(answer(**released)) != hit_macs(**released):
        raise Wrong("for HiT-B the number is not that of Table 6.1: is a size written into your function?")
