"""Wrong answers to the exercises of notebook 07, with a part of the message that each must get."""

import torch
import torch.nn.functional as F

from cfx_lib.learn.checks import nb07


def _scores(q, k):
    return torch.einsum("nhd,nhpd->nhp", q, k)


def _split(w_o, v):
    return w_o.view(len(w_o), v.shape[1], v.shape[3])


def _block(**change):
    def block(cls, patches, attend, mlp, norm_1, norm_2):
        return nb07._block(cls, patches, attend, mlp, norm_1, norm_2, **change)

    return block


def _layernorm(share):
    """Shares of a LayerNorm: `share(parts, mean, var, m, weight, bias, eps)`."""

    def through(parts, weight, bias, eps):
        token = parts.sum(1, keepdim=True)
        mean, var = token.mean(-1, keepdim=True), token.var(-1, unbiased=False, keepdim=True)
        return share(parts, mean, var, parts.shape[1], weight, bias, eps)

    return through


def _unbiased(parts, weight, bias, eps):
    token, m = parts.sum(1, keepdim=True), parts.shape[1]
    return (parts - token.mean(-1, keepdim=True) / m) / (
        token.var(-1, keepdim=True) + eps
    ).sqrt() * weight + bias / m


def _uneven(parts, weight, bias, eps):
    moved = nb07.through_layernorm(parts, weight, bias, eps).clone()
    moved[:, 0] += 1
    moved[:, 1] -= 1
    return moved


def _decomposed(**change):
    def contributions(vectors, cls, b_o, weight, bias, eps, head):
        return nb07._decomposed(vectors, cls, b_o, weight, bias, eps, head, **change)

    return contributions


def _moved(vectors, cls, b_o, weight, bias, eps, head):
    right = nb07.my_contributions(vectors, cls, b_o, weight, bias, eps, head).clone()
    right[:, 0] += 1
    right[:, 1] -= 1
    return right


def _counted(**change):
    def count(image, patch, dim, depth, classes):
        patches = (image // patch) ** 2
        changed = {name: v(patches, depth) if callable(v) else v for name, v in change.items()}
        return nb07._counted(image, patch, dim, depth, classes, **changed)

    return count


def _hidden(how):
    def hide(classifier, x, target, patch, colour):
        return nb07._hidden(classifier, x, target, patch, colour, how)

    return hide


def _curve(how):
    def curve(classifier, x, maps, target, colour):
        return nb07._curve(classifier, x, maps, target, colour, how)

    return curve


WRONG = {
    "07.1": [
        (lambda q, k: _scores(q, k) / q.shape[-1] ** 0.5, "not yet weights"),
        (lambda q, k: _scores(q, k).softmax(-1), "root of d"),
        (lambda q, k: (_scores(q, k) / q.shape[-1]).softmax(-1), "the ROOT"),
        (lambda q, k: (_scores(q, k) / k.shape[2] ** 0.5).softmax(-1), "number of patches"),
        (lambda q, k: (_scores(q, k) / (q.shape[1] * q.shape[2]) ** 0.5).softmax(-1), "ONE head"),
        (lambda q, k: _scores(q, k).softmax(-1) / q.shape[-1] ** 0.5, "BEFORE"),
        (lambda q, k: (_scores(q, k) / q.shape[-1] ** 0.5).softmax(1), "over the heads"),
        (lambda q, k: (_scores(q, k) / q.shape[-1] ** 0.5).softmax(0), "over the images"),
        (lambda q, k: F.normalize((_scores(q, k) / q.shape[-1] ** 0.5).exp(), dim=-1), "SUM of the exponentials"),
        (lambda q, k: torch.full(k.shape[:3], 1 / k.shape[2]), "Eq. 7.1"),
        (lambda q, k: (_scores(q, k) / q.shape[-1] ** 0.5).softmax(-1).mean(1), "shape"),
    ],
    "07.2": [
        (lambda weights, v, w_o: nb07.patch_vectors(weights, v, w_o).sum(1), "already the sum"),
        (lambda weights, v, w_o: torch.einsum("nhp,nhpk,dhk->nhpd", weights, v, _split(w_o, v)), "of each head"),
        (lambda weights, v, w_o: nb07.patch_vectors(weights, v, w_o.T.contiguous()), "transposed"),
        (lambda weights, v, w_o: torch.einsum("nhp,nhpk,dkh->npd", weights, v, w_o.view(len(w_o), v.shape[3], v.shape[1])), "interleaved"),
        (lambda weights, v, w_o: nb07.patch_vectors(weights, v, w_o) / v.shape[1], "a SUM over heads"),
        (lambda weights, v, w_o: torch.einsum("nhpk,dhk->npd", v, _split(w_o, v)), "weights are missing"),
        (lambda weights, v, w_o: nb07.patch_vectors(weights.mean(1, True).expand_as(weights), v, w_o), "has its own"),
        (lambda weights, v, w_o: torch.einsum("nhp,nhpk->nphk", weights, v).flatten(2), "by W_o is missing"),
        (lambda weights, v, w_o: nb07.patch_vectors(weights, v, w_o) + 1, "Eq. 7.3"),
    ],
    "07.3": [
        (_block(keys="all"), "among the keys"),
        (_block(mlp_on="both"), "through the MLP"),
        (_block(mlp_on="cls"), "other way round"),
        (_block(mix=True), "attend to each other"),
        (_block(skip=False), "skip connection of the class token"),
        (_block(skip_patches=False), "skip connection of the patches"),
        (_block(query="bare"), "query is not normalised"),
        (_block(query="norm_2"), "normalised by `norm_2`"),
        (_block(keys="bare"), "not normalised before the attention"),
        (_block(second="none"), "not normalised before the MLP"),
        (_block(second="norm_1"), "it is `norm_2`"),
        (lambda cls, patches, attend, mlp, norm_1, norm_2: cls + attend(norm_1(cls), norm_1(patches)), "two tensors"),
        (lambda cls, patches, attend, mlp, norm_1, norm_2: (cls + attend(norm_1(cls), norm_1(patches)), patches), "itself plus the MLP"),
        (lambda cls, patches, attend, mlp, norm_1, norm_2: (cls + attend(norm_1(cls), norm_1(patches + mlp(norm_2(patches)))), patches + mlp(norm_2(patches))), "as they came in"),
    ],
    "07.4": [
        (lambda parts, weight, bias, eps: F.layer_norm(parts, parts.shape[-1:], weight, bias, eps), "SUM of the parts"),
        (_layernorm(lambda p, mean, var, m, w, b, e: (p - mean) / (var + e).sqrt() * w + b / m), "WHOLE mean"),
        (_layernorm(lambda p, mean, var, m, w, b, e: (p - mean / m) / (var + e).sqrt() * w + b), "whole bias"),
        (_layernorm(lambda p, mean, var, m, w, b, e: (p - mean / m) / (var + e).sqrt() * w), "bias of the LayerNorm is missing"),
        (_layernorm(lambda p, mean, var, m, w, b, e: p / (var + e).sqrt() * w + b / m), "not taken away"),
        (_layernorm(lambda p, mean, var, m, w, b, e: (p - mean / m) / (var + e).sqrt() + b / m), "weight of the LayerNorm"),
        (_layernorm(lambda p, mean, var, m, w, b, e: (p - mean / m) / var * w + b / m), "its ROOT"),
        (_layernorm(lambda p, mean, var, m, w, b, e: (p - p.mean(-1, keepdim=True)) / (var + e).sqrt() * w + b / m), "its OWN mean"),
        (_layernorm(lambda p, mean, var, m, w, b, e: (p - mean / m) / var.sqrt() * w + b / m), "under the root"),
        (_unbiased, "D - 1"),
        (_uneven, "the sum is right"),
        (lambda parts, weight, bias, eps: parts, "do not sum"),
        (lambda parts, weight, bias, eps: F.layer_norm(parts.sum(1), parts.shape[-1:], weight, bias, eps), "shape"),
    ],
    "07.5": [
        (_decomposed(norm="none"), "left out, as in Eq. 7.7"),
        (_decomposed(norm="layers"), "every layer was normalised"),
        (_decomposed(norm="each"), "every part was normalised"),
        (_decomposed(token=0), "class token is left out"),
        (lambda vectors, cls, *rest: nb07._decomposed(vectors, cls, *rest, token=vectors.shape[2]), "comes in L times"),
        (_decomposed(token=1), "comes in L P times"),
        (_decomposed(offset=0), "b_o of the output projection is left out"),
        (_decomposed(offset=1), "b_o is not divided"),
        (lambda vectors, cls, *rest: nb07._decomposed(vectors, cls, *rest, offset=vectors.shape[1] * vectors.shape[2]), "its own b_o"),
        (_moved, "the shares are not"),
        (lambda vectors, cls, b_o, weight, bias, eps, head: vectors @ head.T, "not the logits"),
        (lambda vectors, cls, b_o, weight, bias, eps, head: nb07.my_contributions(vectors, cls, b_o, weight, bias, eps, head).sum(1), "shape"),
    ],
    "07.6": [
        (_hidden("sign"), "MINUS"),
        (_hidden("probability"), "fall of the probability"),
        (_hidden("log p"), "log p"),
        (_hidden("more and more"), "clone x anew"),
        (_hidden("logit"), "how far it FELL"),
        (_hidden("kept"), "painted all others"),
        (_hidden("black"), "not with 0"),
        (_hidden("largest"), "its own target"),
        (lambda classifier, x, target, patch, colour: _hidden("")(classifier, x, target, patch, colour).transpose(1, 2), "changed places"),
        (lambda classifier, x, target, patch, colour: _hidden("")(classifier, x, target, patch, colour) * 2, "patch by patch"),
        (lambda classifier, x, target, patch, colour: _hidden("")(classifier, x, target, patch, colour).flatten(1), "shape"),
    ],
    "07.7": [
        (_curve("ascending"), "LEAST salient"),
        (_curve("one argsort"), "place of each patch"),
        (_curve("insertion"), "this is insertion"),
        (_curve("one by one"), "BELOW k"),
        (_curve("logit"), "of the probability"),
        (_curve("largest"), "takes the lead"),
        (_curve("magnitude"), "AGAINST"),
        (_curve("batch"), "its own map"),
        (_curve("first"), "start is missing"),
        (_curve("last"), "end is missing"),
        (_curve("mean"), "its own curve"),
        (lambda classifier, x, maps, target, colour: torch.full_like(x, colour), "full_like"),
        (lambda classifier, x, maps, target, colour: _curve("")(classifier, x, maps, target, colour) / 2, "step by step"),
    ],
    "07.8": [
        (_counted(mlps=lambda patches, depth: depth), "last block"),
        (_counted(times=2), "twice"),
        (_counted(head=0), "head is missing"),
        (_counted(embedding=0), "embedding of the patches"),
        (_counted(channels=1), "three channels"),
        (_counted(queries=lambda patches, depth: 2 * patches), "ONE token"),
        (_counted(queries=1), "query AND output"),
        (_counted(queries=0), "of the class token are missing"),
        (_counted(scores=0), "products of query"),
        (_counted(scores=1), "weighted sum"),
        (_counted(scores=lambda patches, depth: 2 * patches), "not 2 P^2"),
        (_counted(keys=lambda patches, depth: patches + 1), "no key and no value"),
        (nb07.vit_macs, "of a ViT"),
        (lambda image, patch, dim, depth, classes: 12345, "you returned 12,345"),
        (lambda image, patch, dim, depth, classes: nb07.hit_macs(image, patch, dim, depth, 11), "written into"),
        (lambda image, patch, dim, depth, classes: torch.zeros(3), "expected a number"),
    ],
}  # fmt: skip
