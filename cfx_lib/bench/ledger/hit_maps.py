"""The claims of HiT on its maps: are they faithful, and do counterfactuals agree? `hit_inside` has those on its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from cfx_lib.bench import hit_study
from cfx_lib.bench.claims import Claim, Evidence, Finding, Row, larger, needs_gpu, smaller
from cfx_lib.bench.hit_probes import MAPS
from cfx_lib.bench.ledger import hit_inside
from cfx_lib.bench.ledger.rules import lower

BETTER = {"insertion": "higher", "deletion": "lower"}
RIVALS = {"Grad-CAM": "grad-cam", "rollout": "attention"}
NAMES = {"Grad-CAM": "Grad-CAM's map", "rollout": "the mean attention"}
ON_VIT = NAMES | {"rollout": "attention rollout"}

# ------------------------------------------------------------------------------------------------- Table 6.2, Fig. 6.3


def more_faithful(who: str, kind: str, how: str) -> Callable[[Evidence], Finding]:
    """The check that HiT's map beats another of the same HiT, on the same images."""
    test = smaller if kind == "insertion" else larger

    def check(e: Evidence) -> Finding:
        gap = e.value("hit_faithful", f"{kind}_gap", map=who, replacement=how)
        return test(f"{kind}: {who} less HiT's map, in pairs", gap, 0.0)

    return check


def table_6_2() -> Iterator[Claim]:
    """HiT's map against the two others of Table 6.2, by both measures and both replacements."""
    for who, short in RIVALS.items():
        for kind, better in BETTER.items():
            for how, filled in {"zero": "zeros", "blur": "a blurred image"}.items():
                yield Claim(
                    f"hit.{short}-{kind}-{how}",
                    "Table 6.2",
                    f"On a HiT its own map has a {better} {kind} score than {NAMES[who]} (Fashion-MNIST, patches replaced by {filled}).",
                    more_faithful(who, kind, how),
                    "What is looked at much often counts much, and on pictures of one object before black the attention leaves "
                    "out the background as the map does."
                    if who == "rollout"
                    else "The thesis does not name the layer of Grad-CAM; here it is the last one that patches still reach.",
                )


WORLDS = {
    "photographs": ("Fashion-MNIST", "fashion/hit", "fashion/vit"),
    "faces": ("faces, smiling", "personas/hit:smile", "personas/vit:smile"),
}


def across(who: str, kind: str, ours: str, theirs: str) -> Callable[[Evidence], Finding]:
    """The check that HiT's map on a HiT beats another map on a ViT, by normalised areas."""
    test = larger if kind == "insertion" else smaller

    def check(e: Evidence) -> Finding:
        column = f"{kind}_nauc"
        own = e.value("hit_nauc", column, model=ours, map="HiT", replacement="zero")
        other = e.value("hit_nauc", column, model=theirs, map=who, replacement="zero")
        return test(f"{kind} nAUC: HiT's map on HiT, {who} on ViT", own, other)

    return check


def figure_6_3() -> Iterator[Claim]:
    """HiT's map against maps of a ViT, in both worlds."""
    for world, (said, ours, theirs) in WORLDS.items():
        for who, short in RIVALS.items():
            for kind, better in BETTER.items():
                yield Claim(
                    f"hit.vit-{short}-{kind}-{world}",
                    "Fig. 6.3, there on ImageNet",
                    f"HiT's map on a HiT has a {better} {kind} nAUC than {ON_VIT[who]} on a ViT ({said}, zeros).",
                    across(who, kind, ours, theirs),
                    "Both networks decide by the same few patches of these faces, and both maps find them. The thesis warns that "
                    "networks of different kinds are hard to compare.",
                )


OTHER_DESIGNS = Claim(
    "hit.other-designs",
    "Fig. 6.3",
    "HiT's map has better nAUC than those of A-ViT (ImageNet) and ProtoPFormer (CUB-2011).",
    lambda e: needs_gpu("nAUC of A-ViT and ProtoPFormer"),
    "The two networks, and the data that they were trained on, are not here.",
)

# ------------------------------------------------------------------------------- what counterfactuals say (Sect. 7.2)


def counterfactuals(e: Evidence, column: str, network: str, images: str, setting: str) -> Any:
    """DiME's counterfactuals of a HiT: a column of `hit_shortcut`."""
    return e.value("hit_shortcut", column, part="DiME", network=network, images=images, setting=setting)


ASKED = (
    Claim(
        "hit.counterfactuals-show-it",
        "Sect. 7.2, asked there",
        "A counterfactual confirms what a HiT looks at: DiME puts glasses on bare faces more often for a HiT that learned to "
        "see smiles by glasses than for one that did not (started in deeper noise than its preset: ours).",
        lower(
            "faces whose glasses change: fair HiT, shortcut HiT",
            "hit_shortcut",
            "eyeglasses_changed",
            *(
                {"part": "DiME", "network": who, "images": "bare", "setting": "more noise"}
                for who in ("fair", "shortcut")
            ),
        ),
        "There is one training of each network.",
    ),
    Claim(
        "hit.counterfactuals-rank-alike",
        "Sect. 7.2, asked there",
        "Map and counterfactual of a face agree patch by patch: they rank its patches more alike than those of different faces "
        "do (fair HiT).",
        lambda e: larger(
            "rank correlation: of the same face less of different faces, in pairs",
            counterfactuals(e, "spearman_gap_absolute", "fair", "mixed", "fast"),
            0.0,
        ),
        "On faces that are drawn alike, other faces are a hard comparison: the layout, which both get right, does not count. A "
        "counterfactual redraws whole shapes, and a map may sit on very few patches.",
    ),
)

CLAIMS: tuple[Claim, ...] = (*table_6_2(), *figure_6_3(), OTHER_DESIGNS, *hit_inside.CLAIMS, *ASKED)
FEW = 32
"""Images of the tables that are made in fast mode, more or less."""
LIVE: dict[str, Callable[[], Iterable[Row]]] = {
    "hit_faithful": lambda: hit_study.faithful(FEW, ("HiT", *RIVALS)),
    "hit_nauc": lambda: hit_study.nauc(FEW // 2),
    "hit_layers": lambda: hit_study.layers(8 * FEW),
    "hit_sanity": lambda: hit_study.sanity(FEW, compared={"HiT": MAPS["HiT"]}),
}
