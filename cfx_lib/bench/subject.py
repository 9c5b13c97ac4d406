"""What `evaluate` looks at: the results, checked and sorted into inputs and seeds, and the networks that judge them."""

from __future__ import annotations

import difflib
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cfx_lib.bench import saved
from cfx_lib.metrics import closeness, shortcuts
from cfx_lib.metrics._inputs import check_batch, gather, run
from cfx_lib.metrics.backbones import choose, name_of
from cfx_lib.types import CFResult, frozen_models

QUICK = 100  # pairs
PROBE = 64  # pairs on which the classifier is compared with the stored flips
ROLES = ("realism", "perceptual", "identity", "self-supervised", "oracle", "autoencoders")
HINTS = {
    "classifier": "the explained one, --classifier NAME",
    "oracle": "a network trained apart from the classifier, --oracle NAME:attribute",
    "attribute": "the explained one, --classifier NAME:attribute",
}


class NotMeasured(Exception):
    """Why a metric has no value."""


@dataclass(eq=False)
class Subject:
    """What the metrics look at: `results`, one run of each input; `seeds`, the inputs with several runs; `every` run.

    Made by `prepare`, which checks all of it. The other fields are the arguments of `evaluate`; `notes` are sentences that
    belong beside the table.
    """

    results: list[CFResult]
    seeds: list[list[CFResult]]
    every: list[CFResult]
    classifier: Any = None
    oracle: Any = None
    networks: Mapping[str, Any] = field(default_factory=dict)
    attribute: str | None = None
    reference: Tensor | None = None
    labels: Tensor | None = None
    truth: bool = False
    exact: bool = False
    batch_size: int = 128
    notes: list[str] = field(default_factory=list)

    def need(self, name: str) -> Any:
        """The classifier, the oracle or the attribute; NotMeasured if it was not given."""
        if getattr(self, name) is None:
            raise NotMeasured(f"no {name} given: {HINTS[name]}")
        return getattr(self, name)

    def knowing(self, name: str) -> list[CFResult]:
        """The results (all runs for the cost), if they say what `name` is; else NotMeasured."""
        if any(name in r.extra.get(saved.UNKNOWN, ()) for r in self.every):
            hint = f": give {HINTS['classifier']}" if name == "flipped" else ""
            raise NotMeasured(f"image pairs do not tell the {name}{hint}")
        return self.every if name == "cost" else self.results

    @property
    def flipped(self) -> Tensor:
        """(N,) bool; True where nobody knows."""
        return gather(self.results, "flipped").bool()

    @property
    def classes(self) -> int | None:
        """The number of classes; None if a result has no logits."""
        logits = [r.logits_before for r in self.results]
        return None if any(part is None for part in logits) else logits[0].shape[1]

    @property
    def judge(self) -> Any:
        """The oracle as a classifier of the explained classes."""
        oracle = self.need("oracle")
        return oracle.for_attribute(self.need("attribute")) if hasattr(oracle, "for_attribute") else oracle

    @property
    def reader(self) -> Any:
        """The network of attributes: the oracle's, else the one of the role "oracle", else that of personas."""
        oracle = getattr(self.oracle, "classifier", self.oracle)
        given = oracle if hasattr(oracle, "attributes") else self.networks.get("oracle")
        return choose(given, "oracle", self.results[0].x)

    @property
    def distance(self) -> closeness.LPIPSDistance:
        """LPIPS as a function of two batches."""
        network = self.networks.get("perceptual")
        network = closeness.perceptual_network(self.results[0].x) if network is None else network
        return closeness.lpips_distance(network, self.batch_size)

    @cached_property
    def collateral(self) -> shortcuts.CollateralChanges:
        """Changed attributes of the successful explanations of known faces, by exact factors."""
        options = {"factors": self.faces["factors"], "factor": self.faces["factor"]}
        where = self.faces["known"] & self.flipped
        return shortcuts.collateral_changes(
            self.results, oracle=self.reader, where=where, batch_size=self.batch_size, **options
        )

    @property
    def faces(self) -> dict[str, Any]:
        """The truth about the faces of the shipped test set, see `true_counterfactuals`."""
        if isinstance(self.rendered, Exception):
            raise self.rendered
        return self.rendered

    @cached_property
    def rendered(self) -> dict[str, Any] | Exception:
        """`faces`, or why there is no truth; asked for once."""
        began = time.perf_counter()
        try:
            if not self.truth:
                raise NotMeasured("rendering the truth takes time: ask for it with --truth")
            found = true_counterfactuals(self.results, self.need("classifier"), self.need("attribute"))
        except Exception as error:  # it becomes the reason of every row that needs it
            return error
        known, graded = int(found["known"].sum()), int(found["where"].sum())
        self.notes.append(
            f"truth: {known} of {len(found['known'])} faces known, {graded} of them with a true counterfactual; "
            f"rendered in {time.perf_counter() - began:.0f} s, which no row counts"
        )
        return found


def true_counterfactuals(results: Sequence[CFResult], classifier: Any, attribute: str) -> dict[str, Any]:
    """The true minimal counterfactuals of the images that are faces of the shipped test set, by their pixels.

    Returns x_true (N,3,64,64), factors of the N faces, factor, true_move (N,), known (N,) and where (N,) bool: known, and
    a true counterfactual was found. What is not known is left as it is. NotMeasured if no image is known.
    """
    from cfx_lib.worlds import personas

    factor = personas.FACTOR_OF.get(attribute)
    if factor is None:
        raise NotMeasured(f"the truth is known for {' and '.join(personas.FACTOR_OF)}, not for {attribute!r}")
    x, target = gather(results, "x"), gather(results, "target")
    if tuple(x.shape[1:]) != (3, personas.SIZE, personas.SIZE):
        raise NotMeasured(f"images {tuple(x.shape[1:])} are no faces of the shipped test set")
    faces, everyone = personas.load_uint8("test")
    place = {digest(face): k for k, face in enumerate(faces)}
    rows = np.array([place.get(digest(image), -1) for image in _bytes(x)])
    if not (rows >= 0).any():
        raise NotMeasured("no image is a face of the shipped test set of personas, pixel by pixel")
    known, factors = rows >= 0, everyone[np.maximum(rows, 0)]
    with frozen_models(classifier):
        image, moved, found = personas.true_counterfactual(
            factors[known], factor, classifier, target[torch.from_numpy(known)]
        )
    x_true, move, where = x.clone(), np.zeros(len(x)), known.copy()
    x_true[torch.from_numpy(known)], where[known] = image, found.numpy()
    move[known] = moved[factor] - factors[known][factor]
    arrays = {"true_move": move, "known": known, "where": where}
    return {"x_true": x_true, "factors": factors, "factor": factor} | {
        name: torch.from_numpy(array) for name, array in arrays.items()
    }


def _bytes(x: Tensor) -> np.ndarray:
    """(N,3,H,W) in [-1,1] -> (N,H,W,3) uint8, as faces are stored."""
    return ((x + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()


def digest(*arrays: np.ndarray) -> str:
    """A hash of the bytes."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


# ---------------------------------------------------------------------------------------------------- checks


def prepare(
    results: CFResult | Sequence[CFResult],
    *,
    classifier: Any = None,
    oracle: Any = None,
    networks: Mapping[str, Any] | None = None,
    attribute: str | None = None,
    reference: Tensor | None = None,
    labels: Tensor | None = None,
    truth: bool = False,
    quick: bool = False,
    exact: bool = False,
    batch_size: int = 128,
    places: Sequence[str] | None = None,
) -> Subject:
    """The subject of an evaluation (arguments as in `evaluate`); places: the results' names for messages. ValueErrors as there."""
    every = list(results) if isinstance(results, (list, tuple)) else [results]
    if not every:
        raise ValueError("no results given, at least one CFResult expected: explain something first.")
    places = [f"result {k}" for k in range(len(every))] if places is None else places
    for result in every:
        saved.checked(result)
    saved.same_size(every, places)
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} given, at least 1 expected.")
    every, notes = _asked(every, classifier, batch_size)
    known = [r for r in every if len(r)]
    if not known:
        raise ValueError("the results hold no images: explain something first.")
    kept, seeds, inputs = _sorted(known, QUICK if quick else None)
    notes += _notes(kept, seeds, inputs)
    return Subject(
        kept,
        seeds,
        every,
        classifier,
        oracle,
        _checked_roles(networks or {}),
        _attribute(attribute, classifier, oracle),
        _checked_reference(reference, kept[0].x),
        labels,
        truth,
        exact,
        batch_size,
        notes,
    )


def _asked(every: list[CFResult], classifier: Any, batch_size: int) -> tuple[list[CFResult], list[str]]:
    """The results, completed by the classifier where they do not know their flips; and a note if it disagrees with them."""
    if classifier is None:
        return every, []
    name, images = name_of(classifier), [r for r in every if len(r)]
    if images:
        try:
            logits = run(classifier, images[0].x_cf[:1])
        except Exception as error:
            shape = tuple(images[0].x.shape[1:])
            raise ValueError(f"the classifier {name} does not take images {shape}: {error}") from error
        given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < 2:
            raise ValueError(
                f"the classifier {name} gave {given}, logits (N,K), K >= 2, expected: zoo.wrap it."
            )
        stored = next((r.logits_after.shape[1] for r in every if r.logits_after is not None), given[1])
        if stored != given[1]:
            raise ValueError(
                f"the classifier {name} has {given[1]} classes, the results' logits have {stored}: "
                "give the classifier that was explained."
            )
    every = [saved.completed(r, classifier, batch_size) for r in every]
    return every, _disagreement(images, classifier, name, batch_size)


def _disagreement(images: list[CFResult], classifier: Any, name: str, batch_size: int) -> list[str]:
    """A note, if the classifier does not see the stored flips."""
    stored = [r for r in images if "flipped" not in r.extra.get(saved.UNKNOWN, ())]
    if not stored:
        return []
    x_cf, target, flipped = (gather(stored, field)[:PROBE] for field in ("x_cf", "target", "flipped"))
    wrong = int(((run(classifier, x_cf, batch_size).argmax(1) == target) != flipped.bool()).sum())
    text = f"{name} does not see the stored flips of {wrong} of the first {len(x_cf)} pairs: was it the one explained?"
    return [text] if wrong else []


def _sorted(results: list[CFResult], most: int | None) -> tuple[list[CFResult], list[list[CFResult]], int]:
    """The first run of each input, up to `most` images in all; the inputs that have several runs; the number of inputs."""
    groups: dict[str, list[CFResult]] = {}
    for result in results:
        key = digest(result.x.cpu().numpy(), result.target.cpu().numpy())
        groups.setdefault(key, []).append(result)
    inputs = sum(len(runs[0]) for runs in groups.values())
    kept, seeds, room = [], [], inputs if most is None else most
    for runs in groups.values():
        if take := min(len(runs[0]), room):
            runs, room = [_head(r, take) for r in runs], room - take
            kept.append(runs[0])
            seeds += [runs] if len(runs) > 1 else []
    return kept, seeds, inputs


def _head(result: CFResult, n: int) -> CFResult:
    """The first n pairs (with the cost of all)."""
    names = ("x", "x_cf", "target", "logits_before", "logits_after", "flipped")
    fields = {name: getattr(result, name) for name in names}
    return replace(result, **{k: None if v is None else v[:n] for k, v in fields.items()}, steps=None)


def _notes(kept: list[CFResult], seeds: list[list[CFResult]], inputs: int) -> list[str]:
    notes, n = [], sum(map(len, kept))
    if seeds:
        several, runs = sum(len(g[0]) for g in seeds), sorted({len(group) for group in seeds})
        notes.append(
            f"{several} inputs have {' or '.join(map(str, runs))} runs, taken as seeds: all count for diversity and cost, "
            "the first alone for every other metric"
        )
    if n < inputs:
        notes.append(f"quick: the first {n} of {inputs} pairs")
    if any("flipped" in r.extra.get(saved.UNKNOWN, ()) for r in kept):
        notes.append("nobody knows which pairs flipped: metrics of the successful ones count all pairs")
    return notes


def _checked_roles(networks: Mapping[str, Any]) -> Mapping[str, Any]:
    for role in networks:
        if role not in ROLES:
            near = difflib.get_close_matches(role, ROLES, 1, cutoff=0)[0]
            raise ValueError(
                f"there is no role {role!r} for a network; did you mean {near!r}? Roles: {', '.join(ROLES)}."
            )
    return networks


def _attribute(given: str | None, classifier: Any, oracle: Any) -> str | None:
    """The explained attribute; ValueError if the classifier and the oracle look at different ones."""
    first, second = (getattr(model, "attribute", None) for model in (classifier, oracle))
    if first and second and first != second:
        raise ValueError(
            f"the classifier looks at {first!r}, the oracle at {second!r}: give the oracle for {first!r}."
        )
    return given or first or second


def _checked_reference(reference: Tensor | None, x: Tensor) -> Tensor | None:
    if reference is not None:
        check_batch("reference", reference)
        if reference.shape[1:] != x.shape[1:]:
            raise ValueError(
                f"reference images {tuple(reference.shape[1:])} given, {tuple(x.shape[1:])} expected, as the results."
            )
    return reference
