"""What the ledger of TIME computes by itself: inversion, what is asked of a black box, and what a learned word draws."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cfx_lib import metrics
from cfx_lib.bench import ace_study, dime_study, time_faces
from cfx_lib.bench.dime_study import classifier_of, faces
from cfx_lib.methods.edict import Ddim, Edict, Level, edict_levels
from cfx_lib.methods.time import guided
from cfx_lib.metrics import Value
from cfx_lib.types import CFResult

BOX = "smile-old"
SHORT = {"steps": 20, "attempts": ((4, 2.0),)}
"""Settings of TIME for checks that do not ask whether a face flips."""


# ---------------------------------------------------------------------------------------------------- inversion


def paper_step(x: Tensor, y: Tensor, eps: Callable, level: Level, p: float) -> tuple[Tensor, Tensor]:
    """Eq. 5.6 and 5.7 as they stand in the thesis: the pair at a level -> the pair one level below."""
    here, below = level.alpha_bar, level.below
    a = (below / here) ** 0.5
    b = (1 - below) ** 0.5 - (below * (1 - here) / here) ** 0.5
    x_inter = a * x + b * eps(y, level.t)
    y_inter = a * y + b * eps(x_inter, level.t)
    x = p * x_inter + (1 - p) * y_inter
    return x, p * y_inter + (1 - p) * x


def round_trip(tau: int = 14, steps: int = 20, w: float = 3.0, n: int = 2) -> float:
    """The largest error of latents that the library inverts (Eq. 5.8) and Eq. 5.7 denoises with the same words."""
    model, x = time_faces.model(), faces("test", "smile", n)[0]
    label = classifier_of(BOX, "smile").predict(x)
    with torch.no_grad():
        both = torch.cat([time_faces.words(BOX).conditions(model, k) for k in (label, 1 - label)])
        z = model.encode(x).double()

        def eps(state: Tensor, t: int) -> Tensor:
            return guided(*model.eps(torch.cat([state, state]), t, both).chunk(2), w)

        levels, p = edict_levels(model.alpha_bar, steps, tau), 0.93
        pair = Edict(p, leapfrog=False).invert(z, z, eps, levels)[-1]
        for level in reversed(levels):
            pair = paper_step(*pair, eps, level, p)
    return float((pair[0] - z).abs().max())


def drifts_apart(w: float = 4.0) -> float:
    """Eq. 5.11 against Eq. 5.4 with the drifts of Eq. 5.9 and 5.10 added to its first term: the largest difference."""
    towards, away, empty = torch.randn(
        3, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    drifts = w * (towards - empty) - w * (away - empty)
    return float((guided(towards, away, w) - (towards + drifts)).abs().max())


# ---------------------------------------------------------------------------------------------------- the black box


class Sealed:
    """Something that can be called with images, and nothing else: what is read from it is refused, and noted in `read`."""

    def __init__(self, answer: Callable[[Tensor], Any], read: list[str]) -> None:
        object.__setattr__(self, "_inside", (answer, read))

    def __call__(self, images: Tensor) -> Any:
        return object.__getattribute__(self, "_inside")[0](images)

    def __getattribute__(self, name: str) -> Any:
        object.__getattribute__(self, "_inside")[1].append(name)
        raise AttributeError(f"a black box has no {name}; it can only be called")


def asked(n: int = 2) -> tuple[Tensor, Tensor]:
    """Faces (n,3,64,64) and the labels that they do not have (n,)."""
    x, _ = faces("test", "smile", n)
    return x, time_faces.targets(BOX, x)


def explained(predict: Any, x: Tensor, target: Tensor, seed: int = 0) -> CFResult:
    """A short run of TIME on a black box."""
    method = replace(time_faces.explainer(BOX), predict=predict, **SHORT)
    return method.explain(x, target, seed=seed, progress=False)


def recited() -> tuple[float, list[str]]:
    """A network behind a hatch, then a list of its answers behind it: the largest difference of the counterfactuals of TIME,
    and what was read from either but the labels."""
    (x, target), read = asked(), []
    network, answers = classifier_of(BOX, "smile").predict, {}

    def remember(images: Tensor) -> Tensor:
        labels = network(images)
        answers.update(zip(map(_key, images), labels.tolist(), strict=True))
        return labels

    def recite(images: Tensor) -> list[int]:
        return [answers.get(_key(image), 0) for image in images]

    first, second = (explained(Sealed(answer, read), x, target) for answer in (remember, recite))
    return float((first.x_cf - second.x_cf).abs().max()), read


def _key(image: Tensor) -> bytes:
    return image.numpy().tobytes()


def explain_labels() -> list[str]:
    """Which of DiME and ACE can explain a box that gives labels only, dressed up as the logits that they expect."""
    x, target = asked()
    predict = classifier_of(BOX, "smile").predict

    def dressed(images: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(predict(images), 2).float()

    methods = {
        "DiME": dime_study.dime(dressed),
        "ACE": replace(ace_study.ace(BOX, "smile"), classifier=dressed),
    }
    return [name for name, method in methods.items() if _works(method, x[:1], target[:1])]


def _works(method: Any, x: Tensor, target: Tensor) -> bool:
    try:
        method.explain(x, target, progress=False)
    except (RuntimeError, ValueError):
        return False
    return True


def kept_for_gradients() -> int:
    """How many tensors autograd keeps for a gradient while TIME explains."""
    kept = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += 1
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        explained(classifier_of(BOX, "smile").predict, *asked())
    return kept


def diversity() -> Value:
    """How far explanations of a face with different seeds lie apart (Eq. 3.20, with the mean difference of the pixels)."""
    predict = classifier_of(BOX, "smile").predict
    return metrics.diversity([explained(predict, *asked(), seed=seed) for seed in range(2)])


# ------------------------------------------------------------------------------------------------------- the words


def learned_numbers() -> tuple[int, int]:
    """How many numbers are learned for a data set and a classifier: TIME's vectors, and the weights of DiME's and ACE's model."""
    words = time_faces.words(BOX).words.values()
    network = dime_study._model("personas/ddpm")
    return sum(v.numel() for v in words), sum(p.numel() for p in network.parameters())


@torch.no_grad()
def drawn(label: int, n: int = 12, steps: int = 10, w: float = 1.5) -> Tensor:
    """Faces (n,3,64,64) from noise for the learned phrase of a label: DDIM with classifier-free guidance (Eq. 5.4)."""
    model = time_faces.model()
    phrase = time_faces.words(BOX).conditions(model, torch.full((n,), label))
    both, side = torch.cat([phrase, model.unconditional(n)]), model.native_size // model.factor
    z = torch.randn(n, model.channels, side, side, generator=torch.Generator().manual_seed(0))

    def eps(state: Tensor, t: int) -> Tensor:
        return guided(*model.eps(torch.cat([state, state]), t, both).chunk(2), w)

    end = Ddim().denoise(z, eps, edict_levels(model.alpha_bar, steps))[-1][0]
    return model.decode(end).clamp(-1, 1)


def called_smiling(labels: Iterable[int] = (1, 0)) -> list[Value]:
    """The share of the faces drawn for each label to which the black box gives the label 1."""
    predict = classifier_of(BOX, "smile").predict
    return [metrics.rate(predict(drawn(label)) == 1) for label in labels]
