"""The claims of HiT (thesis, Chapter 6): the architecture, its cost and its accuracy. `hit_maps` has those on maps."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from cfx_lib.bench.claims import Claim, Evidence, Finding, Row, exact, larger, needs_gpu, smaller, within
from cfx_lib.bench.ledger import hit_exact, hit_maps
from cfx_lib.bench.verdicts import INCONCLUSIVE, REPRODUCED, less
from cfx_lib.metrics import Value

# ------------------------------------------------------------------------------------------------------ what is exact


def computed(find: Callable[[], Finding]) -> Callable[[Evidence], Finding]:
    """A check that computes what it needs."""

    def check(evidence: Evidence) -> Finding:
        evidence.computed()
        return find()

    return check


EXACT = (
    Claim(
        "hit.attention-is-a-sum",
        "Sect. 6.3.2, Eq. 6.5",
        "Multi-head attention with one query is a sum of one vector a token, each made of that token's value and its "
        "attention weight, and a bias.",
        computed(
            lambda: exact("largest difference to the library's attention", hit_exact.attention_gap(), 1e-12)
        ),
    ),
    Claim(
        "hit.tokens-stay-local",
        "Sect. 6.3.3, Eq. 6.7",
        "In a HiT a patch's token knows its own patch alone, up to the last layer.",
        computed(
            lambda: exact(
                "tokens of other patches that move with one patch",
                sum(hit_exact.strangers_moved(name) for name in ("fashion/hit", "personas/hit:smile")),
                0.0,
                1,
            )
        ),
    ),
    Claim(
        "hit.vit-mixes",
        "Sect. 6.3.3",
        "In a ViT the tokens of all patches know of each patch.",
        computed(
            lambda: exact(
                "tokens that do not move with one patch",
                sum(hit_exact.unmoved(name) for name in ("fashion/vit", "personas/vit:smile")),
                0.0,
                1,
            )
        ),
    ),
    Claim(
        "hit.logit-is-a-sum",
        "Sect. 6.3.3, Eq. 6.8 with the LayerNorm",
        "The contributions of all patches and layers and the head's bias together are the logit.",
        computed(
            lambda: exact(
                "largest difference to the logits of three networks, in float64",
                max(hit_exact.sum_gap(name) for name in hit_exact.HITS),
                1e-9,
                4,
            )
        ),
    ),
    Claim(
        "hit.logit-without-norm",
        "Sect. 6.3.3, after Eq. 6.8",
        "The map's sum is the logit when the linear classifier is run on the terms of Eq. 6.8 as they stand.",
        computed(
            lambda: exact(
                "largest difference to the logits, in float64", hit_exact.plain_gap("fashion/hit"), 1e-3, 4
            )
        ),
        "The network has a LayerNorm before its classifier, which the thesis's formulas leave out for simplicity. Carried "
        "through it the sum is exact: hit.logit-is-a-sum.",
    ),
    Claim(
        "hit.attention-is-no-contribution",
        "Sect. 6.1",
        "Attention weights are a partial cue at most: they do not rank the patches as their contributions do (rank "
        "correlation below 0.5; bound ours).",
        computed(
            lambda: smaller(
                "rank correlation of attention and contributions", hit_exact.looks_and_terms(), 0.5
            )
        ),
        "On other pictures or networks the two may agree more.",
    ),
    Claim(
        "hit.parameters",
        "Table 6.1",
        "HiT-B has 81.8 million parameters and HiT-S 20.8, DeiT-B 86.4 and DeiT-S 22.1 (within 1 %; margin ours).",
        computed(lambda: exact("largest deviation from the table", hit_exact.parameters_off(), 0.01)),
    ),
    Claim(
        "hit.operations",
        "Table 6.1",
        "HiT-B takes 13.1 billion multiply-adds and HiT-S 3.3, DeiT-B 17.6 and DeiT-S 4.6 (within 1 %; margin ours).",
        computed(lambda: exact("largest deviation from the table", hit_exact.operations_off(), 0.01)),
    ),
    Claim(
        "hit.layer-operations",
        "Table 6.1, caption",
        "A layer's attention takes 0.234 billion multiply-adds in HiT-B and 0.465 in a ViT, an MLP 0.93 in both (within 1 %; margin ours).",
        computed(lambda: exact("largest deviation from the caption", hit_exact.layer_off(), 0.01)),
    ),
    Claim(
        "hit.quarter-saved",
        "Sect. 6.4.3",
        "HiT-B takes 25 % fewer operations than a ViT of its size (within 2 points; margin ours).",
        computed(lambda: within("share of DeiT-B's operations that is saved", hit_exact.saved(), 0.25, 0.02)),
    ),
    Claim(
        "hit.linear",
        "Sect. 6.3.3, Eq. 6.6",
        "With one query the cost is linear in the patches: 16 times as many cost HiT at most 16 times as much.",
        computed(
            lambda: exact(
                "growth of the operations, also of Eq. 6.6's model",
                max(hit_exact.growth(name) for name in ("hit_custom", "vit_hindered_small_patch16_224")),
                16.0,
            )
        ),
    ),
    Claim(
        "hit.vit-not-linear",
        "Sect. 6.3.3",
        "With as many queries as patches it is not: 16 times as many cost a ViT more than 16 times as much.",
        computed(
            lambda: larger("growth of a ViT's operations", hit_exact.growth("vit_tiny_patch16_224"), 16.0)
        ),
    ),
)

# ---------------------------------------------------------------------------------------- accuracy (Tables 6.1 and 6.3)


def trainings(e: Evidence) -> dict[tuple, list[Value]]:
    """The accuracy of every single training of `hit_ablation`, by its setting (pooling, loss, steps)."""
    found: dict[tuple, list[Value]] = {}
    for row in e.rows("hit_ablation"):
        if row["seed"] != "mean":
            found.setdefault((row["pool"], row["loss"], row["steps"]), []).append(row["accuracy"])
    return found


def luck(e: Evidence) -> float:
    """How far two trainings of the same setting lie apart, at most."""
    return max(max(map(float, each)) - min(map(float, each)) for each in trainings(e).values())


def less_accurate(name: str) -> Callable[[Evidence], Finding]:
    """The check that HiT is less accurate than the ViT `name`; no verdict on a gap that luck alone may make."""

    def check(e: Evidence) -> Finding:
        gap, chance = e.value("hit_accuracy", "gap", model=name), luck(e)
        clear = REPRODUCED in (less(chance, gap), less(gap, -chance))
        verdict = less(0.0, gap) if clear else INCONCLUSIVE
        return Finding(verdict, "accuracy: ViT less HiT, in pairs", gap, 0.0)

    return check


def better(worse: tuple[str, str, float], good: tuple[str, str, float]) -> Callable[[Evidence], Finding]:
    """The check that a setting (pooling, loss, times the short training) is more accurate; a verdict only if all trainings of
    the one beat all of the other."""

    def check(e: Evidence) -> Finding:
        each = trainings(e)
        short = min(steps for _, _, steps in each)
        keys = [(pool, loss, int(times * short)) for pool, loss, times in (good, worse)]
        first, second = (list(map(float, each[key])) for key in keys)
        means = [e.value("hit_ablation", "accuracy", seed="mean", **dict(zip(("pool", "loss", "steps"), key, strict=True))) for key in keys]  # fmt: skip
        apart = min(first) > max(second) or min(second) > max(first)
        verdict = less(means[1], means[0]) if apart else INCONCLUSIVE
        return Finding(verdict, "accuracy, mean of two trainings: better, worse", *means)

    return check


ONE_TRAINING = (
    "There is one training for each network, and they are short: gaps that luck alone may make have no verdict. What the "
    "restrictions cost once both have converged, which is what the thesis measured, these networks cannot tell."
)
TWO_TRAININGS = (
    "There are two short trainings of each setting, and they lie further apart than the two settings do."
)
ACCURACY = (
    Claim(
        "hit.accuracy-photographs",
        "Table 6.1, there fully trained on ImageNet",
        "A HiT is less accurate than a ViT of its size (Fashion-MNIST, trained for equally long).",
        less_accurate("fashion/vit"),
        ONE_TRAINING + " A ViT may need more time, another learning rate or more augmentation.",
    ),
    Claim(
        "hit.accuracy-smiling",
        "Table 6.1, there fully trained on ImageNet",
        "A HiT is less accurate than a ViT of its size (faces, smiling, trained for equally long).",
        less_accurate("personas/vit:smile"),
        ONE_TRAINING + " Both are nearly perfect on these faces.",
    ),
    Claim(
        "hit.accuracy-old",
        "Table 6.1, there fully trained on ImageNet",
        "A HiT is less accurate than a ViT of its size (faces, old, trained for equally long).",
        less_accurate("personas/vit:old"),
        ONE_TRAINING + " Both are nearly perfect on these faces.",
    ),
    Claim(
        "hit.faster",
        "Sect. 6.4.3, there in operations",
        "A HiT takes less time for an image than a ViT of its size (batches of 64).",
        lambda e: smaller(
            "milliseconds an image: HiT, ViT",
            *(e.value("hit_accuracy", "ms_64", model=f"fashion/{name}") for name in ("hit", "vit")),
        ),
        "Times depend on the machine and on what else runs there.",
    ),
    Claim(
        "hit.average-pooling",
        "Table 6.3",
        "Average pooling makes a HiT more accurate than no pooling.",
        better(("none", "XE", 1), ("avg", "XE", 1)),
        TWO_TRAININGS,
    ),
    Claim(
        "hit.average-pooling-longer",
        "Table 6.3",
        "Average pooling makes a HiT more accurate than no pooling when both are trained twice as long.",
        better(("none", "XE", 2), ("avg", "XE", 2)),
        TWO_TRAININGS,
    ),
    Claim(
        "hit.convolution-pooling",
        "Sect. 6.4.6",
        "Pooling by convolution makes a HiT more accurate than no pooling.",
        better(("none", "XE", 1), ("conv", "XE", 1)),
        TWO_TRAININGS,
    ),
    Claim(
        "hit.convolution-beats-average",
        "Table 6.3",
        "Pooling by convolution makes a HiT more accurate than average pooling.",
        better(("avg", "XE", 1), ("conv", "XE", 1)),
        TWO_TRAININGS,
    ),
    Claim(
        "hit.longer-training",
        "Table 6.3",
        "Twice the training makes a HiT more accurate.",
        better(("none", "XE", 1), ("none", "XE", 2)),
        TWO_TRAININGS,
    ),
    Claim(
        "hit.longer-training-pooled",
        "Table 6.3",
        "Twice the training makes a HiT with average pooling more accurate.",
        better(("avg", "XE", 1), ("avg", "XE", 2)),
        TWO_TRAININGS,
    ),
    Claim(
        "hit.bce",
        "Table 6.3; Sect. 6.4.6",
        "Binary cross-entropy makes a HiT less accurate than cross-entropy.",
        better(("none", "BCE", 1), ("none", "XE", 1)),
        TWO_TRAININGS,
    ),
    Claim(
        "hit.imagenet",
        "Table 6.1",
        "HiT-B reaches 71.5 % on ImageNet and HiT-S 67.3 %, less than DeiT-B's 81.1 % and DeiT-S's 79.8 %.",
        lambda e: needs_gpu("accuracy on ImageNet"),
        "ImageNet and networks trained on it are not here. The same architecture is trained on small pictures above.",
    ),
)

CLAIMS: tuple[Claim, ...] = (*EXACT, *ACCURACY, *hit_maps.CLAIMS)
LIVE: dict[str, Callable[[], Iterable[Row]]] = hit_maps.LIVE
