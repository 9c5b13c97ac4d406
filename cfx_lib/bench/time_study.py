"""The `full` measurements of notebook 06: TIME on faces, explaining classifiers of which it sees labels only.

`python -m cfx_lib.bench study time` writes them to data/results/; `--only NAME` makes one again. Settings were chosen on
validation faces (`time_settings`); the test faces are looked at in the other tables only. Faces, judges and grades are those
of `dime_study`; `time_faces` has the methods, `time_ablations` Tables 5.3 to 5.6.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cfx_lib import metrics
from cfx_lib.bench import ace_study, conditions, dime_study, metrics_study, time_ablations, time_faces
from cfx_lib.bench.dime_study import Row, classifier_of, faces, graded, oracle_of, preset_of
from cfx_lib.bench.dvce_study import cost_of, gaps
from cfx_lib.bench.kept import explained, joined
from cfx_lib.bench.time_faces import SHIPPED, asked, explainer, extra, reconstructed, short, targets
from cfx_lib.methods.dime import DiME
from cfx_lib.methods.time import TIME, Ddim, Edict, edict_levels, guided
from cfx_lib.metrics import attributes, realism, shortcuts, similarity, transition
from cfx_lib.types import CFResult

EXPLAINED = {"smile-old": 1, "brittle": 2}
"""Classifiers of `time_main`, and by how much its number of faces is divided."""

# ---------------------------------------------------------------------------------------- methods side by side

PAPER_TABLE_5_2 = {  # CelebA HQ, smile: FID, FVA, FS, MNAC, CD, COUT, success
    "TIME": (10.98, 0.966, 0.7896, 2.97, 2.32, 0.6303, 0.971),
    "DiME": (18.1, 0.967, 0.6729, 2.63, 1.82, 0.6495, 0.970),
    "ACE": (3.21, 1.0, 0.8941, 1.56, 2.61, 0.5496, 0.950),
}
PAPER_COLUMNS = ("fid", "fva", "fs", "mnac", "cd", "cout", "flip_rate")


def summary(found: list[CFResult], name: str, n: int) -> Row:
    """A row of `time_main`. Grades, collateral changes and "fid_all" are over all faces, flipped or not."""
    everyone = torch.ones(n, dtype=torch.bool)
    named = {"factors": faces("test", "smile", n)[1], "factor": "smile", "oracle": conditions.oracle()}
    collateral = shortcuts.collateral_changes(found, **named, where=everyone)
    most = collateral.rows()[0]
    return short(found, n) | {
        "fid_all": realism.fid(found, where=everyone),
        "s3": similarity.s3(found),
        "fva": similarity.fva(found),
        "mnac": attributes.mnac(found),
        "cout": transition.cout(found, classifier=classifier_of(name, "smile")),
        "collateral": collateral.changed,
        "collateral_excess": collateral.excess,
        "most_changed": most["attribute"],
        "most_changed_excess": most["excess"],
        **graded(found, name, "smile", n),
    }


def main_table(n: int) -> Iterator[Row]:
    """Table 5.2 in miniature: TIME, DiME and ACE on the same faces, by direction, and TIME attempt by attempt.

    "autoencoder alone": what TIME's autoencoder makes of the faces. Seconds of kept counterfactuals are those of the run that
    made them; `time_cost` has all methods in one run.
    """
    for name, share in EXPLAINED.items():
        count = max(2, n // share)
        x, _ = faces("test", "smile", count)
        target, classifier = targets(name, x), classifier_of(name, "smile")
        methods = {
            "TIME": explainer(name),
            "DiME": dime_study.dime(classifier, preset_of(DiME, name)),
            "ACE": ace_study.ace(name, "smile"),
        }
        found = {label: explained(method, x, target) for label, method in methods.items()}
        found["autoencoder alone"] = reconstructed(found["TIME"], classifier)
        ours: Row = {}
        for label, made in found.items():
            row = summary(made, name, count)
            ours = ours or row
            if label == "TIME":
                row |= asked(made)
            else:
                columns = ("flip_rate", "semantic_flip_rate", "l1_all", "collateral", "outside_share")
                row |= {f"time_{k}": v for k, v in gaps(ours, row, columns, "this").items()}
            theirs = PAPER_TABLE_5_2.get(label, ()) if name == "smile-old" else ()  # explains an ordinary one
            paper = dict(zip(PAPER_COLUMNS, theirs, strict=False))
            about = {"classifier": name, "part": "method", "method": label}
            yield about | row | {f"paper_{k}": v for k, v in paper.items()}
        yield from _by_direction(found, name, target)
        yield from _by_attempt(found["TIME"], methods["TIME"], name)


def _confirmed(found: list[CFResult]) -> tuple[Tensor, Tensor]:
    """Which faces flipped, and which of them the oracle confirms: (N,) bool twice."""
    x_cf, target, flipped = (joined(found, k) for k in ("x_cf", "target", "flipped"))
    return flipped, flipped & (oracle_of("smile").predict(x_cf) == target)


def _by_direction(found: dict[str, list[CFResult]], name: str, target: Tensor) -> Iterator[Row]:
    for label, made in found.items():
        flipped, confirmed = _confirmed(made)
        for k in (0, 1):
            yield {
                "classifier": name,
                "part": f"to {k}",
                "method": label,
                "flip_rate": metrics.flip_rate(flipped[target == k]),
                "semantic_flip_rate": metrics.flip_rate(confirmed[target == k]),
                "n": int((target == k).sum()),
            }


def _by_attempt(found: list[CFResult], method: TIME, name: str) -> Iterator[Row]:
    """How many faces have flipped after each attempt, and how far those of this attempt moved."""
    flipped, confirmed = _confirmed(found)
    last, lengths = extra(found, "attempt"), metrics.lp_norm(found, p=1.0, per_pixel=True, unit_range=True)
    moved = torch.tensor(lengths.scores)
    for k, (tau, w) in enumerate(method.attempts):
        here = flipped & (last == k)
        yield {
            "classifier": name,
            "part": "attempt",
            "method": "TIME",
            "attempt": k + 1,
            "tau": tau,
            "w": w,
            "tried": int((last >= k).sum()),
            "flip_rate": metrics.flip_rate(flipped & (last <= k)),
            "semantic_flip_rate": metrics.flip_rate(confirmed & (last <= k)),
            "l1": metrics.average(moved[here]) if here.any() else None,
            "n": len(last),
        }


# --------------------------------------------------------------------------------------------------- inversion


@torch.no_grad()
def round_trip(z: Tensor, conditions_: tuple[Tensor, Tensor], method: TIME, tau: int, w: float) -> Row:
    """Invert latents (N,c,h,w) and denoise them with the same words: nothing should change.

    "error": (N,) root mean square of the latents' error, whose values have unit variance. "drift": that of the states
    on the way down against those on the way up, at each level, the noisiest first; its last value is the error.
    """
    sampler = Edict(method.p, method.leapfrog) if method.inversion == "edict" else Ddim()
    z = z.to(getattr(torch, method.dtype))
    up = edict_levels(time_faces.model().alpha_bar, method.steps, tau, shift=0 if method.exact else 1)
    down = edict_levels(time_faces.model().alpha_bar, method.steps, tau)

    def eps(state: Tensor, t: int) -> Tensor:
        parts = time_faces.model().eps(torch.cat([state, state]), t, torch.cat(conditions_)).chunk(2)
        return guided(*parts, w)

    rising = [sampler.begin(z), *sampler.invert(*sampler.begin(z), eps, up)]
    falling = [rising[-1], *sampler.denoise(*rising[-1], eps, down)]
    apart = [
        (a[0] - b[0]).square().flatten(1).mean(1).sqrt() for a, b in zip(rising[::-1], falling, strict=True)
    ]
    return {"error": apart[-1], "drift": [float(a.mean()) for a in apart], "z": falling[-1][0]}


SAMPLERS: dict[str, Row] = {
    "EDICT": {},
    "EDICT, float32": {"dtype": "float32"},
    "EDICT, leapfrog": {"leapfrog": True},
    "EDICT, one level off": {"exact": False},
    "DDIM": {"inversion": "ddim"},
}


def inversion(n: int, chains: Sequence[int] = (10, 20, 50)) -> Iterator[Row]:
    """Sect. 5.3.3: does inversion give the image back? Words of the image's own class on both ways, 70 % of the chain.

    "pixels": mean change of the decoded image, in units of its range, against the autoencoder's own reconstruction;
    "grey_level" is one of 255. "one level off" is the release.
    """
    x, _ = faces("test", "smile", n)
    method, source = explainer("smile-old"), classifier_of("smile-old", "smile").predict(x)
    with torch.no_grad():
        z = time_faces.model().encode(x)
        plain = time_faces.model().decode(z).clamp(-1, 1)
        pair = tuple(method.tokens.conditions(time_faces.model(), k) for k in (source, 1 - source))
    for steps in chains:
        for w in (0.0, 3.0):
            for label, changes in SAMPLERS.items():
                if label in ("EDICT, float32", "EDICT, leapfrog") and steps != 20:
                    continue
                changed, tau = replace(method, steps=steps, attempts=((1, w),), **changes), round(0.7 * steps)
                trip = round_trip(z, pair, changed, tau, w)
                with torch.no_grad():
                    back = time_faces.model().decode(trip["z"].to(z)).clamp(-1, 1)
                yield {
                    "sampler": label,
                    "steps": steps,
                    "tau": tau,
                    "w": w,
                    "error": metrics.average(trip["error"]),
                    "pixels": metrics.lp_norm(plain, back, p=1.0, per_pixel=True, unit_range=True),
                    "grey_level": 1 / 255,
                    "drift": trip["drift"],
                    "n": n,
                }


# -------------------------------------------------------------------------------------------- cost and shortcut

PAPER_TFLOPS = {"TIME": (98, 45), "ACE": (279, 62), "DiME": (1004, 163)}  # Sect. 5.4.1: TFLOPs, seconds


def cost(n: int) -> Iterator[Row]:
    """Operations of one explanation, counted for one face, in units of 10^9; seconds and calls of n faces in one run.

    "here": the settings of this study, for the counted face one attempt of TIME; "counted_calls" are its denoiser calls.
    "every attempt": a black box that never gives in. "thesis": its worst case, one attempt with tau = 35 of 50. DiME's full inner
    chain is the thesis's, the one-step chain is not.
    """
    name = "smile-old"
    x, _ = faces("test", "smile", n)
    target, classifier = targets(name, x), classifier_of(name, "smile")
    time_ = explainer(name)
    denied = replace(time_, predict=lambda x: 0 * time_.predict(x))
    thesis = TIME.preset("paper/celebahq/smile", time_faces.model(), time_.predict, time_.tokens)
    thesis = time_ablations.single(thesis, 35, 4.0)
    methods = {
        ("TIME", "here"): time_,
        ("ACE", "here"): ace_study.ace(name, "smile"),
        ("DiME", "here"): dime_study.dime(classifier),
        ("DiME", "here, full inner chain"): dime_study.dime(classifier, inner="full"),
        ("TIME", "here, every attempt"): denied,
        ("TIME", "thesis"): thesis,
    }
    for (label, settings), method in methods.items():
        wanted = torch.ones_like(target) if method is denied else target
        runs: list[CFResult] = []
        flops = metrics.measure_flops(_first_face, method, x, wanted, runs)
        row: Row = {"method": label, "settings": settings, "gflops": flops / 1e9, "n": 1}
        row["counted_calls"] = cost_of(runs)["calls"]
        if settings.startswith("here"):
            runs = [method.explain(x, wanted, progress=False)]
            row |= cost_of(runs) | {"n": n}
        if settings in ("here", "thesis"):
            row |= dict(zip(("paper_tflops", "paper_seconds"), PAPER_TFLOPS[label], strict=True))
        yield row


def _first_face(method: Any, x: Tensor, target: Tensor, runs: list[CFResult]) -> None:
    runs.append(method.explain(x[:1], target[:1], progress=False))


def shortcut(n: int) -> Iterator[Row]:
    """Does the black-box method show the planted shortcut? As `metrics_shortcut` asks of the others, on the same faces."""
    x = metrics_study.shortcut_faces(n)
    target = targets("smile-old", x)
    runs = {name: explained(explainer(name), x, target) for name in SHIPPED}
    for direction, where in {"both": target >= 0, "to 1": target == 1, "to 0": target == 0}.items():
        recall = shortcuts.shortcut_recall(
            runs["smile-shortcut"], runs["smile-old"], oracle=conditions.oracle(), where=where
        )
        for name, made in runs.items():
            row = {"method": "TIME", "setting": "preset", "classifier": name, "direction": direction}
            row |= metrics_study.attribute_changes(made, where, direction == "both")
            yield row | (recall.row() if name == "smile-shortcut" else {}) | {"n": int(where.sum())}


TABLES: dict[str, tuple[Callable[[int], Iterator[Row]], int]] = {  # name -> (rows, number of faces)
    "time_main": (main_table, 64),
    "time_inversion": (inversion, 16),
    "time_steps": (time_ablations.steps_table, 64),
    "time_context": (time_ablations.context, 64),
    "time_guidance": (time_ablations.guidance, 64),
    "time_vectors": (time_ablations.vectors, 64),
    "time_cost": (cost, 8),
    "time_shortcut": (shortcut, 32),
    "time_settings": (time_ablations.settings, 32),
}


def run(only: list[str] | None = None, n: int | None = None, save: bool = True) -> None:
    """Make the tables (all, or those in ``only``), print them and keep them in data/results/."""
    dime_study.run(only, n, save, TABLES)
