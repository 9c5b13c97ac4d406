"""TIME, Text-to-Image Models for counterfactual Explanations of a black box (Jeanneret et al. 2024; thesis, Chapter 5)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import one_hot
from tqdm.auto import tqdm

from cfx_lib.checks import check_images, check_target
from cfx_lib.types import CFResult, Counter, NoiseSource, Step

from . import base, latent_presets
from .blackbox import BlackBox, black_box
from .edict import Ddim, Edict, Eps, Level, edict_levels
from .inversion import Distillation
from .tokens import Tokens, check_text_model

__all__ = ["TIME", "BlackBox", "Ddim", "Distillation", "Edict", "Level", "Tokens", "edict_levels", "guided"]

DTYPES = {"float64": torch.float64, "float32": torch.float32}


def guided(eps_pos: Tensor, eps_neg: Tensor, w: float) -> Tensor:
    """(1 + w) eps_pos - w eps_neg: negative guidance (thesis, Eq. 5.11), or Eq. 5.4 where eps_neg is that of the empty text."""
    return (1 + w) * eps_pos - w * eps_neg


@dataclass(frozen=True, eq=False)
class TIME(base.Presets):
    """TIME (thesis, Sect. 5.3.3): invert the image with the words of its class, denoise it with those of the target.

    `model`: a text-to-image model such as `zoo.load("avatars/sd")`. `predict`: the black box, images -> labels, see
    :class:`BlackBox`, as for `takes` ("float": tensors (n,C,H,W) in [-1,1]; "uint8": arrays (n,H,W,C)) and `batch`; nothing
    else of it is touched. `tokens`: what :class:`Distillation` has learned about it.
    `steps`: of the whole chain. `attempts`: pairs (tau, w), the number of steps that are inverted and the guidance; the
    next pair is tried on the images that have not flipped yet. `p`, `leapfrog`: of EDICT (the thesis does without leapfrog).
    `guidance`: "negative" (Eq. 5.11: away from the other class) or "classifier-free" (Eq. 5.4: away from the empty text).
    `inversion`: "edict", or "ddim", which is not exact. `exact=False` inverts one level off (released code).
    `dtype`: of the states; the model computes in its own. float64 costs next to nothing and keeps the inversion exact.

    Noise: none is drawn; the explanation is a function of the image. Denoiser calls: 8 tau an attempt (DDIM: 4 tau).
    """

    model: Any = field(repr=False)
    predict: Any = field(repr=False)
    tokens: Tokens = field(repr=False)
    steps: int = 50
    attempts: tuple[tuple[int, float], ...] = ((25, 3.0), (30, 4.0), (35, 4.0), (35, 6.0))
    p: float = 0.93
    leapfrog: bool = False
    guidance: str = "negative"
    inversion: str = "edict"
    exact: bool = True
    takes: str = "float"
    batch: int = 64
    dtype: str = "float64"

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = latent_presets.TIME

    def __post_init__(self) -> None:
        black_box(self.predict, self.takes, self.batch)
        Edict(self.p, self.leapfrog)
        base.check_options(
            guidance=(self.guidance, ("negative", "classifier-free")),
            inversion=(self.inversion, ("edict", "ddim")),
            dtype=(self.dtype, tuple(DTYPES)),
        )
        pairs = all(len(pair) == 2 and 1 <= pair[0] <= self.steps and pair[1] >= 0 for pair in self.attempts)
        expected = f"pairs (tau, w) with 1 <= tau <= steps = {self.steps} and w >= 0, at least one"
        base.check_numbers(self, attempts=(bool(self.attempts) and pairs, expected))

    def explain(
        self,
        x: Tensor,
        target: Tensor,
        *,
        seed: int = 0,
        noise: NoiseSource | None = None,
        record: bool = False,
        progress: bool = True,
    ) -> CFResult:
        """Explain images `x` (N,C,H,W) in [-1,1] by counterfactuals of the classes `target` (N,).

        `seed`, `noise`: accepted as by every method; nothing is drawn. `logits_before`, `logits_after` of the result are None,
        since a black box gives labels only. `extra`: "source" and "label" (N,), the black box's answers for x and x_cf;
        "already" (N,) bool, images that have their target class from the start (a UserWarning names them); "attempt" (N,),
        number of the last pair that was tried, "tau" and "w" (N,); "latent" (N,c,h,w), the last z; "reconstruction" (N,C,H,W),
        the decoded latents of x, what the autoencoder alone changes; "predict_calls", the number of calls. `record` keeps
        a Step of each denoising step: `z` the first stream before it, `x_t` the decoded x0_hat, no probability.
        An image that never flips keeps its last attempt. Raises ValueError before any denoising.
        """
        check_text_model(self.model)
        check_images(x, self.model.image_size, self.model.image_channels, multiple_of=self.model.factor)
        check_target(target, len(x))
        edict_levels(self.model.alpha_bar, self.steps)
        self.tokens.check(self.model, target)
        counter, box = Counter(), black_box(self.predict, self.takes, self.batch)
        asked, calls, steps = box.images, box.calls, [] if record else None
        with base.explaining(self.model):
            x, target = x.clone(), target.to(x.device).long().clone()
            source = box(x)
            self.tokens.check(self.model, source)
            already = base.already_there(one_hot(source, int(max(source.max(), target.max())) + 1), target)
            z = self.model.encode(x).to(DTYPES[self.dtype])
            reconstruction = self.model.decode(z).clamp(-1, 1).to(x)
            phrases = [self.tokens.conditions(self.model, classes) for classes in (source, target)]
            run = _Run(x, source, target, counter.denoiser(self.model.eps), phrases, steps, progress)
            x_cf, found = self._search(run, z, box)
        extra = {"source": source, "already": already, "reconstruction": reconstruction, **found}
        counter.classifier_calls, extra["predict_calls"] = box.images - asked, box.calls - calls
        flipped = found["label"] == target
        return CFResult(x, x_cf, target, None, None, flipped, counter.cost(), steps, extra)

    def _search(self, run: _Run, z: Tensor, box: BlackBox) -> tuple[Tensor, dict[str, Tensor]]:
        """One pair (tau, w) after the other, each on the images that have not flipped: x^CF, and how it was found."""
        x_cf, latent, label, attempt = (
            run.x.clone(),
            z.clone(),
            run.source.clone(),
            torch.zeros_like(run.source),
        )
        rows = torch.arange(len(z), device=z.device)
        for number in range(len(self.attempts)):
            latent[rows] = self._edit(run, z[rows], rows, number)
            x_cf[rows] = box.seen(self.model.decode(latent[rows]).clamp(-1, 1).to(x_cf))
            label[rows], attempt[rows] = box(x_cf[rows]), number
            rows = rows[label[rows] != run.target[rows]]
            if not len(rows):
                break
        tau, w = torch.tensor(self.attempts, dtype=torch.float64, device=z.device)[attempt].T
        return x_cf, {"label": label, "attempt": attempt, "tau": tau.long(), "w": w, "latent": latent}

    def _edit(self, run: _Run, z: Tensor, rows: Tensor, number: int) -> Tensor:
        """Invert latents z (n,c,h,w) up to tau as the source (Eq. 5.8), denoise them as the target (Eq. 5.7)."""
        (tau, w), (c_source, c_target) = self.attempts[number], (phrase[rows] for phrase in run.phrases)
        sampler = Edict(self.p, self.leapfrog) if self.inversion == "edict" else Ddim()
        down = edict_levels(self.model.alpha_bar, self.steps, tau)
        up = edict_levels(self.model.alpha_bar, self.steps, tau, shift=0 if self.exact else 1)
        empty = self.model.unconditional(len(z)) if self.guidance == "classifier-free" else None
        invert = _drift(run.eps, c_source, c_target if empty is None else empty, w)
        seen: list[Tensor] = []  # the predictions of a step
        denoise = _drift(run.eps, c_target, c_source if empty is None else empty, w, seen)
        with tqdm(total=2 * tau, desc=f"TIME {number + 1}", leave=False, disable=not run.progress) as bar:
            state = sampler.begin(z)
            for i, level in enumerate(up):
                state = sampler.invert_step(*state, invert, level, tau - 1 - i)
                bar.update()
            for k, level in enumerate(reversed(down)):
                before = state[0]
                seen.clear()
                state = sampler.denoise_step(*state, denoise, level, k)
                if run.steps is not None:
                    x_t = self.model.decode(_estimate(before, seen[0], level.alpha_bar)).float()
                    run.steps.append(Step(tau - 1 - k, level.t, before, x_t, rows=rows, attempt=number))
                bar.update()
        return state[0]


@dataclass(frozen=True)
class _Run:
    """What stays the same while a batch is explained; `phrases` are the encoded C_i and C_j; the steps are filled."""

    x: Tensor
    source: Tensor
    target: Tensor
    eps: Callable[..., Tensor]
    phrases: list[Tensor]
    steps: list[Step] | None
    progress: bool


def _drift(
    eps: Callable, positive: Tensor, negative: Tensor, w: float, seen: list[Tensor] | None = None
) -> Eps:
    """The guided noise as a function of state and timestep, both conditions in one call; `seen` collects it."""

    def drift(z: Tensor, t: int) -> Tensor:
        both = eps(torch.cat([z, z]), t, torch.cat([positive, negative]))
        out = guided(*both.chunk(2), w)
        if seen is not None:
            seen.append(out)
        return out

    return drift


def _estimate(z: Tensor, eps: Tensor, alpha_bar: float) -> Tensor:
    """The clean estimate of a state, from its predicted noise."""
    return (z - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
