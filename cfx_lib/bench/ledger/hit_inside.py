"""The claims of HiT on its layers, and on whether its maps see the network (thesis, Fig. 6.5 and 6.6)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cfx_lib.bench.claims import Claim, Evidence, Finding, larger, smaller

# --------------------------------------------------------------------------------------------------------- Fig. 6.5


def part(e: Evidence, layer: int, name: str = "fashion/hit") -> Any:
    """What a layer contributes to the margin of the predicted class."""
    return e.value("hit_layers", "contribution", part="contribution", model=name, layer=layer)


def accuracy(e: Evidence, kind: str, layer: int) -> Any:
    """The accuracy of an ablation of Fig. 6.5b."""
    return e.value("hit_layers", "accuracy", part="ablation", model="fashion/hit", kind=kind, layer=layer)


def last_layer(e: Evidence, name: str) -> int:
    return max(row["layer"] for row in e.rows("hit_layers", part="contribution", model=name))


def largest(name: str) -> Callable[[Evidence], Finding]:
    """The check that the last layer contributes more than any other."""

    def check(e: Evidence) -> Finding:
        last = last_layer(e, name)
        others = [part(e, layer, name) for layer in range(last)]
        return larger(
            "contribution: last layer, largest of the others", part(e, last, name), max(others, key=float)
        )

    return check


def last_against_first(e: Evidence) -> Finding:
    last = last_layer(e, "fashion/hit")
    return larger("contribution: last layer, first layer", part(e, last), part(e, 0))


def without_last(e: Evidence) -> Finding:
    last = last_layer(e, "fashion/hit")
    less = accuracy(e, "excluding", last)
    return smaller("accuracy: without the last, without the first layer", less, accuracy(e, "excluding", 0))


def last_alone(e: Evidence) -> Finding:
    last = last_layer(e, "fashion/hit")
    more = accuracy(e, "exclusive", last)
    return larger("accuracy: with the last, with the first layer alone", more, accuracy(e, "exclusive", 0))


LAYERS = (
    Claim(
        "hit.last-above-first",
        "Fig. 6.5a; Sect. 6.4.4",
        "The last layer contributes more to the decision than the first (Fashion-MNIST).",
        last_against_first,
        "There is one training of the network.",
    ),
    Claim(
        "hit.last-above-all",
        "Fig. 6.5a, of the final layers (the last alone: ours)",
        "The last layer contributes more to the decision than any other (Fashion-MNIST).",
        largest("fashion/hit"),
        "There is one training of the network.",
    ),
    Claim(
        "hit.last-above-all-faces",
        "Fig. 6.5a, of the final layers, there on photographs (the last alone: ours)",
        "The last layer contributes more to the decision than any other (faces, smiling).",
        largest("personas/hit:smile"),
        "A smile is decided by very few patches, which a layer in the middle may read as well as the last. There is one training "
        "of the network.",
    ),
    Claim(
        "hit.without-last",
        "Fig. 6.5b",
        "Leaving out the last layer costs more accuracy than leaving out the first (Fashion-MNIST).",
        without_last,
        "Every layer can be spared in this small network: the others make up for it, and the intervals overlap.",
    ),
    Claim(
        "hit.last-alone",
        "Fig. 6.5b",
        "The last layer alone is more accurate than the first alone (Fashion-MNIST).",
        last_alone,
        "There is one training of the network.",
    ),
)

# --------------------------------------------------------------------------------------------------------- Fig. 6.6


def correlation(column: str, stage: str = "head", name: str = "fashion/hit") -> Callable[[Evidence], Any]:
    """|r| of HiT's maps before and after the layers down to a stage were made random."""
    return lambda e: e.value("hit_sanity", column, model=name, map="HiT", stage=stage)


def below_half(column: str, stage: str = "head", name: str = "fashion/hit") -> Callable[[Evidence], Finding]:
    kind = column.removesuffix("_top").capitalize()
    what = f"|{kind} r| of the maps before and after{', top 20 %' if column.endswith('_top') else ''}"
    return lambda e: smaller(what, correlation(column, stage, name)(e), 0.5)


STANDING_OUT = (
    "A random head reads the same patch vectors in a random direction. Where a decision hangs on very few patches they stand "
    "out in any direction, and the map keeps its place, though not its sign, which the check leaves out."
)
WIDE = "The interval contains the threshold. " + STANDING_OUT
SANITY = (
    Claim(
        "hit.random-head-ranks",
        "Fig. 6.6a",
        "With a random head alone the maps hardly rank the patches as before (|rank correlation| below 0.5; Fashion-MNIST).",
        below_half("spearman"),
        WIDE,
    ),
    Claim(
        "hit.random-head-pearson",
        "Fig. 6.6b",
        "With a random head alone the maps hardly correlate with those before (|Pearson r| below 0.5; Fashion-MNIST).",
        below_half("pearson"),
        WIDE,
    ),
    Claim(
        "hit.random-head-top",
        "Fig. 6.6b",
        "With a random head alone the top fifth of the patches hardly correlates (|Pearson r| below 0.5; Fashion-MNIST).",
        below_half("pearson_top"),
        WIDE,
    ),
    Claim(
        "hit.all-random-ranks",
        "Fig. 6.6a",
        "With everything random the maps hardly rank the patches as before (|rank correlation| below 0.5; Fashion-MNIST).",
        below_half("spearman", "embedding"),
        WIDE,
    ),
    Claim(
        "hit.all-random-pearson",
        "Fig. 6.6b",
        "With everything random the maps hardly correlate with those before (|Pearson r| below 0.5; Fashion-MNIST).",
        below_half("pearson", "embedding"),
        WIDE,
    ),
    Claim(
        "hit.ranks-fall-first",
        "Sect. 6.4.5",
        "A random head lowers the rank correlation more than the Pearson correlation (Fashion-MNIST).",
        lambda e: smaller(
            "|r| with a random head: ranks, Pearson", correlation("spearman")(e), correlation("pearson")(e)
        ),
        "The pictures are few: the two intervals overlap.",
    ),
    Claim(
        "hit.random-head-ranks-faces",
        "Fig. 6.6a, there on photographs",
        "With a random head alone the maps hardly rank the patches as before (|rank correlation| below 0.5; faces).",
        below_half("spearman", name="personas/hit:smile"),
        WIDE,
    ),
    Claim(
        "hit.random-head-pearson-faces",
        "Fig. 6.6b, there on photographs",
        "With a random head alone the maps hardly correlate with those before (|Pearson r| below 0.5; faces).",
        below_half("pearson", name="personas/hit:smile"),
        STANDING_OUT,
    ),
    Claim(
        "hit.random-head-top-faces",
        "Fig. 6.6b, there on photographs",
        "With a random head alone the top fifth of the patches hardly correlates (|Pearson r| below 0.5; faces).",
        below_half("pearson_top", name="personas/hit:smile"),
        STANDING_OUT,
    ),
)

CLAIMS: tuple[Claim, ...] = (*LAYERS, *SANITY)
