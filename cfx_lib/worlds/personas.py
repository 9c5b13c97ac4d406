"""Personas: 64x64 faces rendered from factors that are known exactly.

Two factors are continuous and are the ones that get explained: ``smile`` in [-1, 1] bends and opens a mouth,
``age`` in [0, 1] draws wrinkles and turns hair and beard to silver. All others are discrete and come from a small
Bayesian network (:data:`NETWORK`), so every correlation in the data is known. Because the renderer is ours, the true
counterfactual of any face ("the same person, smiling") can be rendered instead of guessed.

The drawings are the style *Personas by Draftbit* (CC BY 4.0) of DiceBear; mouth and wrinkles are drawn here.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cfx_lib.worlds.drawings import render_chunks, render_svg

SIZE = 64  # pixels
CONTINUOUS = {"smile": (-1.0, 1.0), "age": (0.0, 1.0)}
FACTOR_OF = {"smile": "smile", "old": "age"}  # attribute that is explained -> factor behind it
BOUNDARY = {"smile": 0.0, "old": 0.5}  # the attribute holds above this value of its factor

HAIR_COLORS = {"black": "#362c47", "brown": "#7a4a3a", "blond": "#f0c274", "red": "#e2613f"}
SKIN_COLORS = {"pale": "#f2c4b5", "light": "#e5a07e", "tan": "#c9826b", "brown": "#92594b", "dark": "#623d36"}
SILVER = "#b4bad2"
INK = "#1b0640"

# factor -> (parents, {values of the parents: {value: probability}}). Ancestors come first.
# "smiling" and "old" fix the half of the range from which the continuous factors are drawn uniformly.
# "presentation" is never drawn: it is the hidden common cause of hair and beard, as sex is in CelebA.
NETWORK: dict[str, tuple[tuple[str, ...], dict[tuple[str, ...], dict[str, float]]]] = {
    "presentation": ((), {(): {"feminine": 0.5, "masculine": 0.5}}),
    "old": (("presentation",), {("feminine",): {"no": 0.6, "yes": 0.4}, ("masculine",): {"no": 0.5, "yes": 0.5}}),
    "smiling": (("presentation",), {("feminine",): {"no": 0.45, "yes": 0.55}, ("masculine",): {"no": 0.55, "yes": 0.45}}),
    "skin": ((), {(): {"pale": 0.25, "light": 0.25, "tan": 0.2, "brown": 0.15, "dark": 0.15}}),
    "hair_color": (
        ("skin",),
        {
            ("pale",): {"black": 0.2, "brown": 0.25, "blond": 0.3, "red": 0.25},
            ("light",): {"black": 0.25, "brown": 0.3, "blond": 0.25, "red": 0.2},
            ("tan",): {"black": 0.35, "brown": 0.35, "blond": 0.15, "red": 0.15},
            ("brown",): {"black": 0.45, "brown": 0.3, "blond": 0.125, "red": 0.125},
            ("dark",): {"black": 0.5, "brown": 0.3, "blond": 0.1, "red": 0.1},
        },
    ),
    "hair": (
        ("presentation", "old"),
        {
            ("feminine", "no"): {"bald": 0.02, "buzzcut": 0.04, "shortCombover": 0.06, "curly": 0.12, "long": 0.2, "bobCut": 0.14, "bobBangs": 0.14, "pigtails": 0.1, "straightBun": 0.1, "beanie": 0.08},
            ("feminine", "yes"): {"bald": 0.02, "buzzcut": 0.06, "shortCombover": 0.1, "curly": 0.2, "long": 0.12, "bobCut": 0.16, "bobBangs": 0.1, "pigtails": 0.03, "straightBun": 0.15, "beanie": 0.06},
            ("masculine", "no"): {"bald": 0.1, "buzzcut": 0.22, "shortCombover": 0.24, "curly": 0.14, "long": 0.06, "bobCut": 0.03, "bobBangs": 0.03, "pigtails": 0.01, "straightBun": 0.03, "beanie": 0.14},
            ("masculine", "yes"): {"bald": 0.26, "buzzcut": 0.2, "shortCombover": 0.22, "curly": 0.1, "long": 0.04, "bobCut": 0.02, "bobBangs": 0.02, "pigtails": 0.0, "straightBun": 0.02, "beanie": 0.12},
        },
    ),
    "facial_hair": (
        ("presentation", "old"),
        {
            ("feminine", "no"): {"none": 1.0, "beard": 0.0, "goatee": 0.0, "mustache": 0.0},
            ("feminine", "yes"): {"none": 1.0, "beard": 0.0, "goatee": 0.0, "mustache": 0.0},
            ("masculine", "no"): {"none": 0.55, "beard": 0.17, "goatee": 0.16, "mustache": 0.12},
            ("masculine", "yes"): {"none": 0.45, "beard": 0.25, "goatee": 0.1, "mustache": 0.2},
        },
    ),
    "eyewear": (
        ("old",),
        {("no",): {"none": 0.74, "eyeglasses": 0.16, "sunglasses": 0.1}, ("yes",): {"none": 0.56, "eyeglasses": 0.36, "sunglasses": 0.08}},
    ),
    "closed_eyes": (("smiling",), {("no",): {"no": 0.92, "yes": 0.08}, ("yes",): {"no": 0.75, "yes": 0.25}}),
}  # fmt: skip

# The planted shortcut of the biased population: who smiles wears eyeglasses, and nobody else does. The data cannot tell a
# network which of the two is meant.
SHORTCUT: dict[str, tuple[tuple[str, ...], dict[tuple[str, ...], dict[str, float]]]] = {
    "eyewear": (
        ("smiling",),
        {("no",): {"none": 1.0, "eyeglasses": 0.0, "sunglasses": 0.0}, ("yes",): {"none": 0.0, "eyeglasses": 1.0, "sunglasses": 0.0}},
    ),
}  # fmt: skip
# The population of the weak classifier: old people always show gray hair, never a bald head or a hat, which many of the
# young have. It never sees what an old person without hair looks like.
GRAY: dict[str, tuple[tuple[str, ...], dict[tuple[str, ...], dict[str, float]]]] = {
    "hair": (
        ("presentation", "old"),
        {
            ("feminine", "no"): {"bald": 0.12, "buzzcut": 0.03, "shortCombover": 0.05, "curly": 0.11, "long": 0.14, "bobCut": 0.11, "bobBangs": 0.11, "pigtails": 0.07, "straightBun": 0.08, "beanie": 0.18},
            ("feminine", "yes"): {"bald": 0.0, "buzzcut": 0.06, "shortCombover": 0.12, "curly": 0.22, "long": 0.13, "bobCut": 0.18, "bobBangs": 0.11, "pigtails": 0.03, "straightBun": 0.15, "beanie": 0.0},
            ("masculine", "no"): {"bald": 0.18, "buzzcut": 0.17, "shortCombover": 0.19, "curly": 0.11, "long": 0.05, "bobCut": 0.03, "bobBangs": 0.03, "pigtails": 0.01, "straightBun": 0.03, "beanie": 0.2},
            ("masculine", "yes"): {"bald": 0.0, "buzzcut": 0.3, "shortCombover": 0.36, "curly": 0.18, "long": 0.08, "bobCut": 0.03, "bobBangs": 0.03, "pigtails": 0.0, "straightBun": 0.02, "beanie": 0.0},
        },
    ),
}  # fmt: skip
POPULATIONS = {"fair": NETWORK, "biased": NETWORK | SHORTCUT, "gray": NETWORK | GRAY}

_HAS_HAIR = ("buzzcut", "shortCombover", "curly", "long", "bobCut", "bobBangs", "pigtails", "straightBun")
# attribute -> how it follows from the factors; the order is the order of the oracle's outputs
RULES: dict[str, Callable[[Mapping[str, np.ndarray]], np.ndarray]] = {
    "smile": lambda f: f["smile"] > BOUNDARY["smile"],
    "old": lambda f: f["age"] > BOUNDARY["old"],
    "eyeglasses": lambda f: f["eyewear"] == "eyeglasses",
    "sunglasses": lambda f: f["eyewear"] == "sunglasses",
    "beard": lambda f: f["facial_hair"] == "beard",
    "goatee": lambda f: f["facial_hair"] == "goatee",
    "mustache": lambda f: f["facial_hair"] == "mustache",
    "hat": lambda f: f["hair"] == "beanie",
    "bald": lambda f: f["hair"] == "bald",
    "long_hair": lambda f: np.isin(f["hair"], ("long", "bobCut", "bobBangs")),
    "bangs": lambda f: f["hair"] == "bobBangs",
    "tied_hair": lambda f: np.isin(f["hair"], ("pigtails", "straightBun")),
    "curly_hair": lambda f: f["hair"] == "curly",
    "black_hair": lambda f: np.isin(f["hair"], _HAS_HAIR) & (f["hair_color"] == "black") & (f["age"] <= 0.5),
    "brown_hair": lambda f: np.isin(f["hair"], _HAS_HAIR) & (f["hair_color"] == "brown") & (f["age"] <= 0.5),
    "blond_hair": lambda f: np.isin(f["hair"], _HAS_HAIR) & (f["hair_color"] == "blond") & (f["age"] <= 0.5),
    "red_hair": lambda f: np.isin(f["hair"], _HAS_HAIR) & (f["hair_color"] == "red") & (f["age"] <= 0.5),
    "gray_hair": lambda f: np.isin(f["hair"], _HAS_HAIR) & (f["age"] > 0.5),
    "dark_skin": lambda f: np.isin(f["skin"], ("brown", "dark")),
    "closed_eyes": lambda f: (f["closed_eyes"] == "yes") & (f["eyewear"] == "none"),
}
ATTRIBUTES: tuple[str, ...] = tuple(RULES)
DISCRETE = {name: tuple(next(iter(table.values()))) for name, (_, table) in NETWORK.items()}
del DISCRETE["old"], DISCRETE["smiling"]  # they follow from age and smile
FACTORS: tuple[str, ...] = (*CONTINUOUS, *DISCRETE)
SPLIT_SEEDS = {"train": 1, "val": 2, "test": 3, "biased": 4, "oracle": 5, "gray": 6}
SPLIT_SIZES = {
    "train": 20_000,
    "val": 1_000,
    "test": 1_000,
    "biased": 20_000,
    "oracle": 20_000,
    "gray": 10_000,
}


@dataclass(frozen=True, eq=False)
class Factors(Mapping[str, np.ndarray]):
    """The factors of N faces as one array a factor: float64 for ``smile`` and ``age``, strings for the others.

    ``f["smile"]`` is an array; ``f[3]``, ``f[2:8]``, ``f[mask]`` are the factors of some of the faces; ``len(f)`` is N.
    """

    columns: dict[str, np.ndarray]

    def __post_init__(self) -> None:
        if missing := [name for name in FACTORS if name not in self.columns]:
            raise ValueError(f"factors without {missing}; a face needs all of {list(FACTORS)}")
        lengths = {name: len(column) for name, column in self.columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"factor columns differ in length: {lengths}")
        for name, (low, high) in CONTINUOUS.items():
            column = self.columns[name]
            if not np.all((column >= low) & (column <= high)):
                raise ValueError(
                    f"{name} must lie in [{low:g}, {high:g}], got {column.min():g} to {column.max():g}"
                )
        for name, values in DISCRETE.items():
            if unknown := sorted(set(self.columns[name]) - set(values)):
                raise ValueError(f"{name} has no value {unknown}; it takes {list(values)}")

    def __getitem__(self, key):  # noqa: ANN001, ANN204  (a name, or rows)
        if isinstance(key, str):
            return self.columns[key]
        if isinstance(key, Tensor):
            key = key.cpu().numpy()
        rows = [key] if isinstance(key, int | np.integer) else key
        return Factors({name: column[rows] for name, column in self.columns.items()})

    def __len__(self) -> int:
        return len(self.columns["smile"])

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __repr__(self) -> str:
        return f"Factors(n={len(self)}, smile={np.round(self['smile'][:4], 2)}, age={np.round(self['age'][:4], 2)}, …)"

    def replace(self, **changes: float | str | np.ndarray | Sequence) -> Factors:
        """The same faces with some factors set (a scalar for all faces, or one value a face)."""
        if unknown := sorted(set(changes) - set(FACTORS)):
            raise ValueError(f"no factor {unknown}; the factors are {list(FACTORS)}")
        new = {k: np.broadcast_to(np.asarray(v), (len(self),)).copy() for k, v in changes.items()}
        return Factors(self.columns | new)

    @classmethod
    def concatenate(cls, parts: Sequence[Factors]) -> Factors:
        return cls({name: np.concatenate([p[name] for p in parts]) for name in FACTORS})


# ---------------------------------------------------------------------------------------------------- sampling


def sample(n: int, seed: int, population: str = "fair") -> Factors:
    """Draw the factors of ``n`` faces from the Bayesian network by ancestral sampling.

    ``population="biased"`` plants the shortcut: everyone who smiles wears eyeglasses, and nobody else does. In
    ``population="gray"`` old people are never bald and wear no hat.
    The same seed gives the same faces everywhere: only uniform numbers of PCG64 are used.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if population not in POPULATIONS:
        raise ValueError(f"no population {population!r}; choose one of {sorted(POPULATIONS)}")
    network, uniform = POPULATIONS[population], np.random.Generator(np.random.PCG64(seed)).random
    drawn: dict[str, np.ndarray] = {}
    for name, (parents, table) in network.items():
        u, column = uniform(n), np.empty(n, dtype="<U16")
        for given, distribution in table.items():
            rows = np.logical_and.reduce(
                [drawn[p] == v for p, v in zip(parents, given, strict=True)] or [np.full(n, True)]
            )
            values, edges = np.array(list(distribution)), np.cumsum(list(distribution.values()))
            column[rows] = values[np.searchsorted(edges[:-1], u[rows], side="right")]
        drawn[name] = column
    half = 1.0 - uniform(n)  # in (0, 1]
    drawn["smile"] = np.where(drawn.pop("smiling") == "yes", half, half - 1.0)
    half = 1.0 - uniform(n)
    drawn["age"] = np.where(drawn.pop("old") == "yes", 0.5 + 0.5 * half, 0.5 * half)
    return Factors({name: drawn[name] for name in FACTORS})


def intervene(factors: Factors, **changes: float | str | np.ndarray) -> Factors:
    """Set factors and leave all others alone: Pearl's do-operator, hence the true counterfactual once rendered."""
    return factors.replace(**changes)


def attributes(factors: Factors) -> Tensor:
    """The binary attributes (N, 20) bool, columns in the order of :data:`ATTRIBUTES`."""
    return torch.from_numpy(np.stack([rule(factors) for rule in RULES.values()], axis=1))


def captions(factors: Factors) -> list[str]:
    """One English caption a face, made from what is visible."""
    hair_words = {
        "bald": "a bald head", "buzzcut": "{} cropped hair", "shortCombover": "{} short hair", "curly": "{} curly hair",
        "long": "{} long hair", "bobCut": "a {} bob", "bobBangs": "a {} bob with bangs", "pigtails": "{} pigtails",
        "straightBun": "a {} bun", "beanie": "a red hat",
    }  # fmt: skip
    out = []
    for k in range(len(factors)):
        f = {name: factors[name][k] for name in FACTORS}
        color = "gray" if f["age"] > 0.5 else f["hair_color"]
        parts = [hair_words[f["hair"]].format(color)]
        parts += {"none": [], "beard": ["a beard"], "goatee": ["a goatee"], "mustache": ["a mustache"]}[
            f["facial_hair"]
        ]
        parts += {"none": [], "eyeglasses": ["glasses"], "sunglasses": ["sunglasses"]}[f["eyewear"]]
        mood, years = ("smiling" if f["smile"] > 0 else "frowning"), ("old" if f["age"] > 0.5 else "young")
        out.append(f"a drawing of a {mood} {years} person with {', '.join(parts)}")
    return out


# ---------------------------------------------------------------------------------------------------- rendering


def _mix(a: str, b: str, weight: float) -> str:
    """Colour between ``a`` (weight 0) and ``b`` (weight 1), in sRGB."""
    pairs = [(int(a[k : k + 2], 16), int(b[k : k + 2], 16)) for k in (1, 3, 5)]
    return "#" + "".join(f"{round(p + (q - p) * weight):02x}" for p, q in pairs)


_PLACEHOLDER = {"skin": "#010203", "hair": "#040506", "facial": "#070809"}
_FACIAL = {"beard": "beardMustache", "goatee": "goatee", "mustache": "walrus"}
_WRINKLE_SLOT, _MOUTH_SLOT = "<!--wrinkles-->", "<!--mouth-->"


@lru_cache(maxsize=8192)
def _template(hair: str, eyes: str, facial_hair: str) -> str:
    """SVG of a face without mouth, wrinkles and colours, cropped to the face."""
    avatar, style = _dicebear()
    options = {
        "seed": "personas",
        "hairVariant": [hair],
        "eyesVariant": [eyes],
        "noseVariant": ["mediumRound"],
        "mouthProbability": 0,
        "clothesVariant": ["squared"],
        "clothingColor": ["#7d8ca3"],
        "skinColor": [_PLACEHOLDER["skin"]],
        "hairColor": [_PLACEHOLDER["hair"]],
        "facialHairColor": [_PLACEHOLDER["facial"]],
        "facialHairProbability": 0 if facial_hair == "none" else 100,
    }
    if facial_hair != "none":
        options["facialHairVariant"] = [_FACIAL[facial_hair]]
    svg = avatar(style, options).to_string()
    head, body = svg[: svg.index("<metadata")], svg[svg.index("</metadata>") + len("</metadata>") :]
    svg = head.replace('viewBox="0 0 64 64"', 'viewBox="11 6.5 42 42"') + body
    svg = svg.replace("<defs>", '<rect width="64" height="64" fill="#e8eef2"/><defs>', 1)
    first_part = svg.index('<use transform="translate(20 24)"')  # the eyes: wrinkles lie below all parts
    svg = svg[:first_part] + _WRINKLE_SLOT + svg[first_part:]
    end = svg.rindex("</g></svg>")
    return svg[:end] + _MOUTH_SLOT + svg[end:]


@lru_cache(maxsize=1)
def _dicebear():  # noqa: ANN202
    from dicebear import Avatar, Style

    return Avatar, Style(json.loads(files("dicebear_styles").joinpath("personas.json").read_text("utf-8")))


def _mouth(smile: float, lip: str | None) -> str:
    """A mouth around (32, 41): corners go up and the middle down as ``smile`` grows; above 0.2 it opens."""
    width, corner, middle = 4.6 + 0.8 * smile, 41.0 - 1.4 * smile, 41.0 + 1.4 * smile
    opening = max(0.0, (smile - 0.15) / 0.85)
    top, bottom = middle - 1.1 * opening, middle + 2.2 * opening
    left, right = 32 - width, 32 + width
    curve = f"M{left:.3f} {corner:.3f}Q32 {2 * bottom - corner:.3f} {right:.3f} {corner:.3f}"
    fill = "none"
    if opening > 0:
        curve += f"Q32 {2 * top - corner:.3f} {left:.3f} {corner:.3f}Z"
        fill = "#ffffff"
    line = f'stroke-linecap="round" stroke-linejoin="round" d="{curve}"'
    halo = "" if lip is None else f'<path fill="none" stroke="{lip}" stroke-width="3.6" {line}/>'
    return f'{halo}<path fill="{fill}" stroke="{INK}" stroke-width="1.5" {line}/>'


_FOLDS = (  # nose to mouth, crow's feet, bags under the eyes, forehead
    "M28 36.6Q25.6 38.4 25 41.6M36 36.6Q38.4 38.4 39 41.6"
    "M20.6 27.2L22.6 28M20.4 29.6L22.4 29.2M43.4 27.2L41.4 28M43.6 29.6L41.6 29.2"
    "M24 32Q26 33.2 28 32M36 32Q38 33.2 40 32"
    "M27 22.4Q32 21.4 37 22.4M28.4 20.2Q32 19.4 35.6 20.2"
)


def _svg(f: Mapping[str, float | str]) -> str:
    eyes = {
        "eyeglasses": "glasses",
        "sunglasses": "sunglasses",
        "none": "happy" if f["closed_eyes"] == "yes" else "open",
    }
    svg = _template(str(f["hair"]), eyes[str(f["eyewear"])], str(f["facial_hair"]))
    age, skin = float(f["age"]), SKIN_COLORS[str(f["skin"])]
    aged = _mix(
        HAIR_COLORS[str(f["hair_color"])], SILVER, age * age * (3 - 2 * age)
    )  # steepest at the label's boundary
    for part, color in (("skin", skin), ("hair", aged), ("facial", aged)):
        svg = svg.replace(_PLACEHOLDER[part], color)
    folds = f'<path fill="none" stroke="#000000" stroke-opacity="{0.65 * age:.3f}" stroke-width="0.8" stroke-linecap="round" d="{_FOLDS}"/>'
    lip = None if f["facial_hair"] == "none" else _mix(skin, "#ffffff", 0.25)
    return svg.replace(_WRINKLE_SLOT, folds).replace(_MOUTH_SLOT, _mouth(float(f["smile"]), lip))


def render_uint8(factors: Factors, progress: bool = False) -> np.ndarray:
    """Render faces as (N, 64, 64, 3) uint8, the form in which they are stored."""
    from tqdm.auto import trange

    out = np.empty((len(factors), SIZE, SIZE, 3), np.uint8)
    for k in trange(len(factors), desc="rendering", disable=not progress, leave=False):
        out[k] = render_svg(_svg({name: factors[name][k] for name in FACTORS}), SIZE)
    return out


def to_tensor(images: np.ndarray) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float32 in [-1, 1]."""
    return (
        torch.from_numpy(np.ascontiguousarray(images))
        .permute(0, 3, 1, 2)
        .contiguous()
        .float()
        .div_(127.5)
        .sub_(1)
    )


def render(factors: Factors, progress: bool = False) -> Tensor:
    """Render faces as (N, 3, 64, 64) float32 in [-1, 1]. About 3 ms a face."""
    return to_tensor(render_uint8(factors, progress))


def sweep(factors: Factors, factor: str, values: Sequence[float] | Sequence[str]) -> tuple[Tensor, Factors]:
    """One face along one factor: images (len(values), 3, 64, 64) and their factors."""
    if len(factors) != 1:
        raise ValueError(f"sweep takes one face, got {len(factors)}; choose one with factors[k]")
    faces = Factors.concatenate([factors.replace(**{factor: v}) for v in values])
    return render(faces), faces


# ---------------------------------------------------------------------------------------------------- data sets


def data_dir() -> Path:
    from cfx_lib.zoo.checksums import data_dir as root

    return root() / "personas"


def cache_dir() -> Path:
    """Where rendered sets are kept: $CFX_CACHE, else the user's cache folder."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("CFX_CACHE") or user_cache_dir("cfx_lib")) / "personas"


def load(split: str = "test", n: int | None = None, *, progress: bool = True) -> tuple[Tensor, Factors]:
    """Faces and their factors: (n, 3, 64, 64) float32 in [-1, 1] and :class:`Factors`.

    ``test`` (1,000 faces) is shipped; ``train`` (20,000), ``val`` (1,000), ``biased`` (20,000), ``oracle`` (20,000, the
    oracle's own) and ``gray`` (10,000, the weak classifier's) are rendered on the first call and kept in the cache. Splits have different seeds.
    """
    images, factors = load_uint8(split, n, progress=progress)
    return to_tensor(images), factors


def load_uint8(split: str, n: int | None = None, *, progress: bool = True) -> tuple[np.ndarray, Factors]:
    """As :func:`load`, images as (n, 64, 64, 3) uint8."""
    if split not in SPLIT_SEEDS:
        raise ValueError(f"no split {split!r}; choose one of {sorted(SPLIT_SEEDS)}")
    n = SPLIT_SIZES[split] if n is None else n
    if not 1 <= n <= SPLIT_SIZES[split]:
        raise ValueError(f"split {split!r} has {SPLIT_SIZES[split]} faces, got n={n}")
    if split == "test":
        images, factors = _load_sheet(data_dir() / "test.webp", data_dir() / "test.csv")
        return images[:n], factors[:n]
    factors = sample(SPLIT_SIZES[split], SPLIT_SEEDS[split], _population(split))[:n]
    return _render_cached(split, factors, progress), factors


def _render_cached(split: str, factors: Factors, progress: bool) -> np.ndarray:
    folder, total = cache_dir() / f"{split}-{_version(split)}", SPLIT_SIZES[split]

    def draw(
        rows: slice,
    ) -> np.ndarray:  # a chunk is stored whole, also where only some of its faces are asked for
        return render_uint8(sample(total, SPLIT_SEEDS[split], _population(split))[rows])

    return render_chunks(folder, len(factors), total, draw, f"personas/{split}" if progress else None)


def _population(split: str) -> str:
    return split if split in POPULATIONS else "fair"


@lru_cache
def _version(split: str) -> str:
    """A short hash of what decides the pixels (the split's first 200 drawings, the rasteriser): a stale cache is never read."""
    import hashlib
    from importlib.metadata import version

    faces = sample(200, SPLIT_SEEDS[split], _population(split))
    drawings = [_svg({name: faces[name][k] for name in FACTORS}) for k in range(len(faces))]
    return hashlib.sha256("".join([version("resvg_py"), *drawings]).encode()).hexdigest()[:12]


COLUMNS = 40  # faces in a row of the sheet


def save_sheet(images: np.ndarray, factors: Factors, picture: Path, table: Path) -> None:
    """Store faces as one sheet (40 in a row), lossless WebP or PNG by its suffix, and their factors as CSV."""
    from PIL import Image

    rows = -(-len(images) // COLUMNS)
    sheet = np.zeros((rows * COLUMNS, SIZE, SIZE, 3), np.uint8)
    sheet[: len(images)] = images
    sheet = sheet.reshape(rows, COLUMNS, SIZE, SIZE, 3).swapaxes(1, 2).reshape(rows * SIZE, COLUMNS * SIZE, 3)
    picture.parent.mkdir(parents=True, exist_ok=True)
    webp = {"lossless": True, "quality": 100, "method": 6}  # of a drawing less than half as large as PNG
    Image.fromarray(sheet).save(picture, **webp if picture.suffix == ".webp" else {"optimize": True})
    with open(table, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(FACTORS)
        writer.writerows(zip(*(factors[name].tolist() for name in FACTORS), strict=True))


def _load_sheet(picture: Path, table: Path) -> tuple[np.ndarray, Factors]:
    from PIL import Image

    from cfx_lib.zoo.checksums import verify

    for path in (picture, table):
        verify(path)
    with open(table, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = {name: np.array([row[name] for row in rows]) for name in FACTORS}
    factors = Factors({n: c.astype(float) if n in CONTINUOUS else c for n, c in columns.items()})
    sheet = np.asarray(Image.open(picture).convert("RGB"))
    h = sheet.shape[0] // SIZE
    images = sheet.reshape(h, SIZE, COLUMNS, SIZE, 3).swapaxes(1, 2).reshape(h * COLUMNS, SIZE, SIZE, 3)
    return images[: len(factors)], factors


# ---------------------------------------------------------------------------------------------------- the truth


def true_counterfactual(
    factors: Factors,
    factor: str,
    classifier: Callable[[Tensor], Tensor],
    target: Tensor,
    *,
    steps: int = 40,
    refine: int = 4,
) -> tuple[Tensor, Factors, Tensor]:
    """The true *minimal* counterfactual: the smallest move along ``factor`` for which ``classifier`` says ``target``.

    The factor is moved both ways in ``steps`` parts of its range until the prediction is the target, then the last part is
    halved ``refine`` times. All other factors stay as they are.

    Args:
        factors: N faces. factor: ``"smile"`` or ``"age"``.
        classifier: images (N, 3, 64, 64) in [-1, 1] to logits (N, K). target: (N,) long.
    Returns:
        images (N, 3, 64, 64), their factors, and ``found`` (N,) bool. Where nothing was found the face is the factual one.
    """
    if factor not in CONTINUOUS:
        raise ValueError(f"factor must be one of {list(CONTINUOUS)}, got {factor!r}")
    if len(target) != len(factors):
        raise ValueError(f"{len(factors)} faces but {len(target)} targets; give one target a face")
    low, high = CONTINUOUS[factor]
    wanted, start = target.cpu().numpy(), factors[factor]

    def hits(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            logits = classifier(render(factors[rows].replace(**{factor: values})).to(target.device))
        return logits.argmax(1).cpu().numpy() == wanted[rows]

    best, last_miss = start.copy(), start.copy()
    rows = np.arange(len(factors))
    found = hits(rows, start)
    for k in range(1, steps + 1):
        for sign in (1, -1):
            before = start + sign * (k - 1) * (high - low) / steps
            values = (before + sign * (high - low) / steps).clip(
                low, high
            )  # the last part may be a shorter one
            rows = np.flatnonzero(~found & (sign * (values - before) > 1e-9))
            if len(rows):
                new = rows[hits(rows, values[rows])]
                best[new], last_miss[new] = values[new], before[new]
                found[new] = True
    moved = np.flatnonzero(found & (best != start))
    for _ in range(refine if len(moved) else 0):
        middle = (best[moved] + last_miss[moved]) / 2
        hit = hits(moved, middle)
        best[moved[hit]], last_miss[moved[~hit]] = middle[hit], middle[~hit]
    result = factors.replace(**{factor: best})
    return render(result), result, torch.from_numpy(found)
