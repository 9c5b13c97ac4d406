"""The `full` measurements of notebook 04: DVCE, SVCE and Blended Diffusion on photographs of clothes and on faces.

`python -m cfx_lib.bench study dvce` writes them to data/results/; `--only NAME` makes one again. Settings were chosen on
training photographs and validation faces; the test images are looked at here only. Faces, their judges and grades are
those of `dime_study`.

Names are those of the zoo, "fashion/resnet", with ":smile" or ":old" behind a network of faces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from cfx_lib import metrics
from cfx_lib.bench import ace_study, dime_study
from cfx_lib.bench.dime_study import Row, explain, graded
from cfx_lib.diffusion import Diffusion
from cfx_lib.methods.base import Presets
from cfx_lib.methods.blended import BlendedDiffusion
from cfx_lib.methods.cone import cone_angle
from cfx_lib.methods.dvce import DVCE
from cfx_lib.methods.svce import SVCE
from cfx_lib.types import CFResult
from cfx_lib.worlds import fashion, targets

EXPLAINED = ("fashion/resnet", "fashion/convnext")
ROBUST = "fashion/robust"
OTHER = dict(zip((*EXPLAINED, ROBUST), (*EXPLAINED[::-1], EXPLAINED[0]), strict=True))
"""The second opinion on a flip: another network of the same classes."""


# --------------------------------------------------------------------------------------------- networks, methods


def classifier_of(name: str) -> Any:
    network, _, attribute = name.partition(":")
    return dime_study._model(network).for_attribute(attribute) if attribute else dime_study._model(network)


def denoiser_of(name: str) -> Any:
    return dime_study._model(f"{name.split('/')[0]}/ddpm")


def robust_of(name: str) -> str:
    """The robust network of the same world, asked about the same attribute."""
    world, _, rest = name.partition("/")
    return f"{world}/robust" + rest[rest.find(":") :] * (":" in rest)


def preset_of(method: type[Presets], name: str) -> str:
    """The preset of a method for the world of a network ("fashion", "personas") or for the attribute asked about."""
    attribute = name.partition(":")[2] or "smile"
    return dime_study.preset_of(method, name.split("/")[0], attribute)


def dvce(name: str, **changes: Any) -> DVCE:
    """DVCE on a network, through the cone around it unless it is robust itself; `robust=None`: on the network alone."""
    helper = None if name == robust_of(name) else classifier_of(robust_of(name))
    changes = {"robust": helper} | changes
    return DVCE.preset(preset_of(DVCE, name), denoiser_of(name), classifier_of(name), **changes)


def svce(name: str, **changes: Any) -> SVCE:
    """SVCE on the robust network of the same world, or on `classifier`, where adversarial images must be expected."""
    classifier = changes.pop("classifier", None) or classifier_of(robust_of(name))
    return SVCE.preset(preset_of(SVCE, name), classifier, **changes)


def blended(name: str, **changes: Any) -> BlendedDiffusion:
    preset = preset_of(BlendedDiffusion, name)
    return BlendedDiffusion.preset(preset, denoiser_of(name), classifier_of(name), **changes)


# ------------------------------------------------------------------------------------------- images, measurements


@lru_cache(maxsize=8)
def photographs(split: str, n: int) -> tuple[Tensor, Tensor]:
    """The first photographs of each class that both explained networks get right, a class after the other.

    `split`: "test", or "val" for settings, which stands for the shipped training images. Returns (n,1,32,32), (n,) long.
    """
    x, labels = fashion.load("train" if split == "val" else split)
    each, rows = -(-n // len(fashion.CLASSES)), []
    for label in range(len(fashion.CLASSES)):
        pool = (labels == label).nonzero().flatten()[: 3 * each + 6]
        right = torch.stack([classifier_of(name).predict(x[pool]) == label for name in EXPLAINED]).all(0)
        rows.append(pool[right][:each])
    chosen = torch.stack(rows, 1).flatten()[:n]
    return x[chosen], labels[chosen]


def targets_of(x: Tensor, labels: Tensor) -> Tensor:
    """A close class for each photograph, (N,) long: a sibling in the written-down tree (`targets.semantic`).

    Trousers, dresses and bags are alone under their narrowest kind. They go to the class that is the most similar on
    average to 500 training photographs (`targets.nearest_classes`), by the cosine of pixels: no network has a say in it.
    """
    close, tree = targets.semantic(x, labels, "fashion", k=None), targets.tree_of("fashion")
    alone = torch.tensor([len(tree.siblings(label)) > 2 for label in labels.tolist()])
    if alone.any():
        bank = fashion.load("train", 500)
        nearest = targets.nearest_classes(x[alone], labels[alone], _pixels, *bank, k=1, reduce="mean")
        close[alone] = nearest[:, 0]
    return close


def _pixels(x: Tensor) -> Tensor:
    return (x + 1).flatten(1)


def joined(results: list[CFResult], *names: str) -> list[Tensor]:
    """Fields of all results, along the images."""
    return [torch.cat([getattr(r, name) for r in results]) for name in names]


def _features(judge: str, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([classifier_of(judge).features(part)[-1].mean((2, 3)) for part in x.split(250)])


@lru_cache(maxsize=4)
def _bank(judge: str, n: int = 2000, k: int = 3) -> tuple[Tensor, Tensor]:
    """Features of the last training photographs (n,d), and how far the k-th neighbour of each is, (n,)."""
    real = _features(judge, fashion.load("train")[0][-n:])
    return real, torch.cdist(real, real).kthvalue(k + 1, dim=1).values


def realism(x: Tensor, judge: str) -> metrics.Value:
    """Share of images that lie among photographs: nearer to one of them than its own third neighbour is.

    This is the precision of Kynkäänniemi et al. (2019), with features of `judge` and 2000 training photographs. It stands
    in for the paper's FID, which needs many more images, and unlike it has an interval. It does not ask which class.
    """
    real, radius = _bank(judge)
    return metrics.rate((torch.cdist(_features(judge, x), real) <= radius).any(1), backbone=judge)


def cost_of(results: list[CFResult]) -> Row:
    kinds = {"calls": "denoiser_calls", "classifier_calls": "classifier_calls", "seconds": "seconds"}
    n = sum(map(len, results))
    return {k: sum(getattr(r.cost, kind) for r in results) / n for k, kind in kinds.items()}


def summary(results: list[CFResult], name: str) -> Row:
    """Flips and who confirms them, closeness (per pixel, images in [0,1]), realism and cost of results for a network.

    Images that the explained network took for their target from the start are left out of all but the cost.
    """
    fresh = ~torch.cat([r.extra["already"] for r in results])
    fields = joined(results, "x", "x_cf", "target", "flipped", "logits_after")
    x, x_cf, target, flipped, logits = (f[fresh] for f in fields)
    agrees = {judge: classifier_of(judge).predict(x_cf) == target for judge in (OTHER[name], ROBUST)}
    lengths = {"per_pixel": True, "unit_range": True}
    return {
        "flip_rate": metrics.flip_rate(flipped),
        "confidence": metrics.mean_confidence(logits, target),
        "confirmed": metrics.flip_rate(flipped & agrees[OTHER[name]]),
        "robust_confirms": metrics.flip_rate(flipped & agrees[ROBUST]),
        **{f"l{p:g}": metrics.lp_norm(x, x_cf, p=p, **lengths) for p in (1.0, 1.5, 2.0)},
        "realism": realism(x_cf, OTHER[name]),
        **cost_of(results),
        "n": len(fresh),
        "already": int((~fresh).sum()),
    }


def measure(method: Any, name: str, n: int, split: str = "test") -> tuple[Row, list[CFResult]]:
    """Explain n photographs towards close classes; the summary, with the network `name` as the explained one."""
    x, labels = photographs(split, n)
    results = explain(method, x, targets_of(x, labels))
    return summary(results, name), results


# ------------------------------------------------------------------------------------------------ the tables

VALUES = 3 * 224**2  # of an image of the paper's
PAPER_TABLE_1 = {  # on a robust network: confidence, FID, and norms of images in [0,1], here as means over the values
    "DVCE": (0.932, 17.6, 12799, 293, 48),
    "SVCE": (0.945, 25.6, 5139, 139, 26),
    "Blended": (0.825, 27.9, 35678, 722, 108),
}
LDCE_TABLE_1 = {("DVCE", "fashion/resnet"): 0.9956, ("SVCE", "fashion/robust"): 0.8382}  # flip rates


def paper_table_1(method: str) -> Row:
    confidence, fid, *norms = PAPER_TABLE_1[method]
    sized = {f"paper_l{p:g}": v / VALUES ** (1 / p) for p, v in zip((1, 1.5, 2), norms, strict=True)}
    return {"paper_confidence": confidence, "paper_fid": fid, **sized}


def gaps(row: Row, reference: Row, columns: tuple[str, ...], to: str) -> Row:
    """The paired differences of two summaries of the same images, which tables do not keep otherwise."""
    return {
        f"{column}_against_{to}": metrics.difference(row[column], reference[column]) for column in columns
    }


def main_table(n: int) -> Iterator[Row]:
    """Table 1, and beyond it: the three methods on both networks and on the robust one, the only one of the paper's.

    Blended Diffusion searches six settings, so it gets the first quarter of the images, and is compared with DVCE on these.
    """
    x, _ = photographs("test", n)
    columns = ("flip_rate", "confidence", "l1", "l1.5", "l2", "realism")
    for name in (*EXPLAINED, ROBUST):
        yield {"method": "photographs", "classifier": name, "realism": realism(x, OTHER[name]), "n": n}
        methods = {"SVCE": svce(name, classifier=classifier_of(name)), "Blended": blended(name)}
        counts = {"SVCE": n, "Blended": max(2, n // 4)}
        ours = {count: measure(dvce(name), name, count)[0] for count in counts.values()}
        rows = {"DVCE": ours[n]}
        for label, method in methods.items():
            row, _ = measure(method, name, counts[label])
            rows[label] = row | gaps(row, ours[counts[label]], columns, "dvce")
        for label, row in rows.items():
            paper = paper_table_1(label) if name == ROBUST else {}
            paper["paper_flip"] = LDCE_TABLE_1.get((label, name))
            yield {"method": label, "classifier": name, **row, **paper}


def personas_table(n: int) -> Iterator[Row]:
    """Faces: with and without the cone on both twins, and the two baselines; flips judged by the oracle."""
    for attribute in ("smile", "old"):
        fair, brittle, robust = (f"personas/{k}:{attribute}" for k in ("smile-old", "brittle", "robust"))
        methods = {
            ("DVCE", "smile-old"): dvce(fair),
            ("DVCE, no cone", "smile-old"): dvce(fair, robust=None),
            ("DVCE", "brittle"): dvce(brittle),
            ("DVCE, no cone", "brittle"): dvce(brittle, robust=None),
            ("SVCE", "robust"): svce(robust),
            ("Blended", "smile-old"): blended(fair),
        }
        for (label, name), method in methods.items():
            count = max(2, n // 4) if label == "Blended" else n  # it searches six settings
            row, results = dime_study.measure(method, attribute, count)
            row |= graded(results, name, attribute, count) | cost_of(results)
            yield {"attribute": attribute, "method": label, "classifier": name, **row}


def spread(angles: Tensor, cone: float) -> Row:
    """How far gradient pairs (N,steps), in degrees, lie apart; intervals over the images, whose steps belong together."""

    def share(beyond: float) -> metrics.Value:
        hits = torch.where(angles.isnan(), torch.nan, (angles > beyond).double())
        return metrics.average(hits.nanmean(1), unit="%")

    mean = metrics.average(angles.double().nanmean(1))
    away = share(90.0 + cone)  # where the paper's projection points away from the cone
    return {"mean_angle": mean, "outside_cone": share(cone), "beyond_60": share(60.0), "away": away}


def angles(n: int) -> Iterator[Row]:
    """LDCE, App. A (Fig. 6): the angle between the two gradients. Early and late are the halves of the trajectory."""
    for name in (*EXPLAINED, "personas/smile-old:smile", "personas/brittle:smile"):
        method = dvce(name)
        world = measure(method, name, n) if name in EXPLAINED else dime_study.measure(method, "smile", n)
        found, half = torch.cat([r.extra["angles"] for r in world[1]]), method.start // 2
        values = world[1][0].x[0].numel()
        noise = torch.randn(2, n * method.start, values, generator=torch.Generator().manual_seed(0))
        parts = {"all": found, "early": found[:, :half], "late": found[:, half:]}
        for part, degrees in (parts | {"random": cone_angle(*noise).view(n, -1)}).items():
            row = {"classifier": name, "part": part, **spread(degrees, method.angle), "values": values}
            yield {**row, "paper_beyond_60": 0.9773 if part == "all" else None, "n": n}


def nearness(x: Tensor, a: Tensor, b: Tensor) -> Row:
    """How near counterfactuals a and b are: distance over the mean length of their changes, and the changes' cosine."""
    first, second = (a - x).flatten(1), (b - x).flatten(1)
    apart, length = (first - second).norm(dim=1), (first.norm(dim=1) + second.norm(dim=1)) / 2
    cosine = metrics.average(torch.cosine_similarity(first, second, dim=1))
    return {"distance": metrics.ratio(apart, length), "cosine": cosine}


def robust_table(n: int) -> Iterator[Row]:
    """LDCE's criticism (App. A, Fig. 7): who decides, the explained network or the robust one? All from the same noise.

    "to robust", "to classifier", "to cone": how near a row's images are to those guided by the robust network alone, by
    the explained one alone, by both. "guidance to ...": the cosine of what guidance did, which is the difference from the
    images without guidance. What sampling itself does is seen there, and with other noise.
    """
    x, labels = photographs("test", n)
    target = targets_of(x, labels)

    def images(method: DVCE, seed: int = 0) -> Tensor:
        return joined(explain(method, x, target, seed=seed), "x_cf")[0]

    robust, other_noise = images(dvce(ROBUST)), images(dvce(ROBUST), seed=1)
    free = images(dvce(ROBUST, C_c=0.0))
    cones = {name: images(dvce(name)) for name in EXPLAINED}
    alone = {name: images(dvce(name, robust=None)) for name in EXPLAINED}
    for name, other in zip(EXPLAINED, EXPLAINED[::-1], strict=True):
        runs = {
            "cone": cones[name],
            "robust alone": robust,
            "classifier alone": alone[name],
            "cone of the other": cones[other],
            "the other alone": alone[other],
            "robust alone, other noise": other_noise,
            "no guidance": free,
        }
        rows: dict[str, Row] = {}
        for label, x_cf in runs.items():
            row: Row = {"classifier": name, "guided by": label, "n": n}
            for column, judge in {"flip_rate": name, "other": other, "robust": ROBUST}.items():
                row[column] = metrics.flip_rate(classifier_of(judge).predict(x_cf), target)
            row["l2"] = metrics.lp_norm(x, x_cf, p=2.0, per_pixel=True, unit_range=True)
            row["guidance"] = metrics.lp_norm(free, x_cf, p=2.0, per_pixel=True, unit_range=True)
            for column, guided in {"robust": robust, "classifier": alone[name], "cone": cones[name]}.items():
                row |= {f"{k} to {column}": v for k, v in nearness(x, x_cf, guided).items()}
                row[f"guidance to {column}"] = nearness(free, x_cf, guided)["cosine"]
            rows[label] = row
        cone, own = rows["cone"], rows["classifier alone"]
        cone["robust_over_classifier"] = metrics.difference(
            cone["guidance to robust"], cone["guidance to classifier"]
        )
        own |= gaps(own, cone, ("other", "l2"), "cone")
        own["share_of_cone"] = metrics.ratio(own["guidance"].scores, cone["guidance"].scores)
        with_help, without = (
            rows["cone of the other"]["guidance to cone"],
            rows["the other alone"]["guidance to classifier"],
        )
        cone["alike_against_alone"] = metrics.difference(with_help, without)
        yield from rows.values()


def settings(n: int) -> Iterator[Row]:
    """Sect. 3.1 and Fig. 2: one setting for all images and networks, against six and a search for each image."""
    for name in (*EXPLAINED, ROBUST):
        searched = blended(name)
        methods = {"DVCE": dvce(name), "Blended, searched": searched}
        for C_c, C_d in searched.weights:
            methods[f"Blended, {C_c:g} and {C_d:g}"] = replace(searched, weights=((C_c, C_d),))
        ours: Row = {}
        for label, method in methods.items():
            row, _ = measure(method, name, n)
            ours = ours or row
            against = {} if label == "DVCE" else gaps(row, ours, ("flip_rate", "confidence"), "dvce")
            yield {
                "classifier": name,
                "method": label,
                "attempts": row["calls"] / method.start,
                **row,
                **against,
            }


def variants(changes: dict[Any, Row], key: str, n: int) -> Iterator[Row]:
    """DVCE on the first network with changed settings, a row for each, compared with the first of them."""
    name, first = EXPLAINED[0], None
    for label, settings in changes.items():
        method = dvce(name, **settings)
        row, results = measure(method, name, n)
        x, x_cf = joined(results, "x", "x_cf")
        moved = ((x - x_cf).abs() > 0.1).double().flatten(1).mean(1)  # by more than 5 % of the range
        alpha_bar = Diffusion(None, method.denoiser.betas, method.steps).alpha_bar[method.start - 1]
        row |= {key: label, "alpha_bar": float(alpha_bar), "moved": metrics.average(moved, unit="%")}
        first = row if first is None else first
        yield row | gaps(row, first, ("moved", "l1"), "first") | {"backbone": results[0].extra["perceptual"]}


def start(n: int) -> Iterator[Row]:
    """Where the chain starts, as a share of T (App. B.2): the paper chose the half."""
    T = dvce(EXPLAINED[0]).steps
    yield from variants({s: {"start": round(s * T)} for s in (0.2, 0.3, 0.4, 0.5, 0.6, 0.8)}, "share", n)


def distance(n: int) -> Iterator[Row]:
    """The distance d of Eq. 11: the paper chose l1, since its changes are sparse (Sect. 3.1 and App. B.2)."""
    kinds = {kind: {"distance": kind} for kind in ("l1", "l1.5", "l2", "lpips")}
    yield from variants(kinds | {"none": {"C_d": 0.0}}, "distance", n)


LDCE_SECONDS = {"DVCE": 210 / 4, "ACE": 184.0}  # LDCE, Sect. 4.2, on an RTX 3090


def cost(n: int) -> Iterator[Row]:
    """Calls and seconds of DiME, ACE and DVCE on the same faces; what autograd keeps for ACE with and without checkpoints."""
    name = "personas/smile-old:smile"
    x, _ = dime_study.faces("test", "smile", n)
    classifier = classifier_of(name)
    target = 1 - classifier.predict(x)
    ace = ace_study.ace("smile-old", "smile")
    methods = {
        "DiME": dime_study.dime(classifier),
        "DiME, full": dime_study.dime(classifier, inner="full"),
        "ACE": ace,
        "ACE, checkpointing": replace(ace, checkpointing=True),
        "DVCE": dvce(name),
    }
    dvce(name, start=2).explain(x[:4], target[:4], progress=False)  # the first calls of a network are slower
    for label, method in methods.items():
        parts = zip(x.split(4), target.split(4), strict=True)
        results = [method.explain(a, b, progress=False) for a, b in parts]
        row = {"method": label, **cost_of(results), "seconds": metrics.cost_per_explanation(results)}
        row |= {"flip_rate": metrics.flip_rate(results), "n": n, "paper_seconds": LDCE_SECONDS.get(label)}
        row["semantic_flip_rate"] = metrics.semantic_flip_rate(results, dime_study.oracle_of("smile"))
        if label.startswith("ACE"):
            row["kept_mb"] = ace_study.kept_bytes(method, x[:1], target[:1]) / 1e6
        yield row


TABLES: dict[str, tuple[Callable[[int], Iterator[Row]], int]] = {  # name -> (rows, number of images)
    "dvce_main": (main_table, 64),
    "dvce_personas": (personas_table, 64),
    "dvce_angles": (angles, 16),
    "dvce_robust": (robust_table, 32),
    "dvce_settings": (settings, 16),
    "dvce_start": (start, 16),
    "dvce_distance": (distance, 16),
    "dvce_cost": (cost, 8),
}


def run(only: list[str] | None = None, n: int | None = None, save: bool = True) -> None:
    """Make the tables (all, or those in ``only``), print them and keep them in data/results/."""
    dime_study.run(only, n, save, TABLES)
