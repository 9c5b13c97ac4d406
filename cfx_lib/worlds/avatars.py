"""Avatars: 64x64 portraits in eight drawing styles, with captions; the data of the small text-to-image foundation model.

Every avatar has the factors of a persona (:mod:`cfx_lib.worlds.personas`) and a style that draws them with its own
components, as far as it can: what a style has no component for is set to its default (:func:`project`), so factors and
captions never name what cannot be seen. *Personas* is one style of eight: a model of avatars knows more than the
classifiers of personas were trained on, as a foundation model does in LDCE and TIME.

The drawings are styles of DiceBear; :data:`SOURCES` lists their authors and licences.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import numpy as np
import torch
from torch import Tensor

from cfx_lib.worlds import personas
from cfx_lib.worlds.drawings import render_chunks, render_svg
from cfx_lib.worlds.personas import HAIR_COLORS, SILVER, SKIN_COLORS, Factors, to_tensor

SIZE = 64  # pixels
SOURCES = {  # style -> (drawings, author, licence)
    "personas": ("Personas by Draftbit", "Draftbit", "CC BY 4.0"),
    "avataaars": ("Avataaars", "Pablo Stanley", "free for personal and commercial use"),
    "open-peeps": ("Open Peeps", "Pablo Stanley", "CC0 1.0"),
    "pixel-art": ("Pixel Art", "DiceBear", "CC0 1.0"),
    "voxel-art": ("Voxel Art", "DiceBear", "CC0 1.0"),
    "micah": ("Avatar Illustration System", "Micah Lanier", "CC BY 4.0"),
    "adventurer": ("Adventurer", "Lisa Wischofsky", "CC BY 4.0"),
    "big-smile": ("Custom Avatar", "Ashley Seo", "CC BY 4.0"),
}
STYLES: tuple[str, ...] = tuple(SOURCES)
SHARES = (0.3, *[0.1] * 7)  # how often each style is drawn by `sample`
SPLIT_SEEDS = {"train": 11, "val": 12, "test": 13}
SPLIT_SIZES = {"train": 24_000, "val": 1_000, "test": 1_000}


# ------------------------------------------------------------------------------------------- what a style can draw


@dataclass(frozen=True)
class Drawing:
    """How one style draws a face: its components for each value of a factor, and the part of its canvas to show.

    A factor's value that is missing cannot be drawn; :func:`project` replaces it. Of several components one is chosen by
    the avatar's ``variant``.
    """

    view: str  # viewBox of the part of the canvas that is shown
    hair: Mapping[str, Sequence[str]]
    mouth: Mapping[str, Sequence[str]]  # "smiling" and "frowning"
    eyewear: Mapping[str, Sequence[str]]
    parts: Callable[[Mapping[str, str], Callable[[Sequence[str]], str]], dict]  # factors, choice -> options
    facial_hair: Mapping[str, Sequence[str]]
    colors: tuple[str, ...] = tuple(HAIR_COLORS)


def _shared(f: Mapping[str, str], choose: Callable, **names: str) -> dict:
    """Options that most styles have, under the names that ``names`` gives them: glasses, beard."""
    out: dict = {}
    for option, factor in names.items():
        worn = f[factor] != "none"
        out |= {f"{option}Probability": 100 if worn else 0}
        out |= {f"{option}Variant": [choose(f"{factor}")]} if worn else {}
    return out


def _avataaars(f: Mapping[str, str], choose: Callable) -> dict:
    return {
        "topVariant": [choose("hair")], "topProbability": 0 if f["hair"] == "bald" else 100, "mouthVariant": [choose("mouth")],
        "eyesVariant": ["happy" if f["closed"] else "default"], "eyebrowsVariant": ["defaultNatural"], "clothesVariant": ["shirtCrewNeck"],
        "clothesColor": ["#5199e4"], "hatColor": ["#ff5c5c"], "accessoriesColor": ["#262e33"], "facialHairColor": [f["color"]],
        "hairColor": [f["color"]], "skinColor": [f["tone"]], **_shared(f, choose, accessories="eyewear", facialHair="facial_hair"),
    }  # fmt: skip


def _open_peeps(f: Mapping[str, str], choose: Callable) -> dict:
    return {
        "headVariant": [choose("gray" if f["gray"] else "hair")], "expressionVariant": [choose("mouth")], "maskProbability": 0,
        "headContrastColor": ["#c93305" if f["hair"] == "beanie" else SILVER], "skinColor": [f["tone"]], "clothingColor": ["#8fa7df"],
        **_shared(f, choose, accessories="eyewear", facialHair="facial_hair"),
    }  # fmt: skip


def _pixel_art(f: Mapping[str, str], choose: Callable) -> dict:
    return {
        "hairVariant": [choose("hair")], "hairProbability": 0 if f["hair"] in ("bald", "beanie") else 100, "mouthVariant": [choose("mouth")],
        "hatProbability": 100 if f["hair"] == "beanie" else 0, "hatVariant": [choose("hat")], "hatColor": ["#a62116"], "accessoriesProbability": 0,
        "eyesVariant": ["variant01"], "eyesColor": ["#647b90"], "mouthColor": ["#de0f0d"], "clothesVariant": ["variant03"], "clothingColor": ["#428bca"],
        "hairColor": [f["color"]], "skinColor": [f["tone"]], "glassesColor": ["#191919"], "beardProbability": 0, **_shared(f, choose, glasses="eyewear"),
    }  # fmt: skip


def _voxel_art(f: Mapping[str, str], choose: Callable) -> dict:
    return {
        "topVariant": [choose("hair")], "topProbability": 0 if f["hair"] == "bald" else 100, "mouthVariant": [choose("mouth")], "cheeksProbability": 0,
        "eyesVariant": ["happy" if f["closed"] else "open"], "eyebrowsProbability": 0, "noseVariant": ["block"], "outfitVariant": ["plain"],
        "shirtColor": ["#228be6"], "hatColor": ["#e0876d"], "backgroundColor": ["#d1d4f9"], "hairColor": [f["color"]], "skinColor": [f["tone"]],
        "animationVariant": ["none"], **_shared(f, choose, glasses="eyewear", beard="facial_hair"),
    }  # fmt: skip


def _micah(f: Mapping[str, str], choose: Callable) -> dict:
    return {
        "hairVariant": [choose("hair")], "mouthVariant": [choose("mouth")], "eyesVariant": ["smiling" if f["closed"] else "eyes"],
        "eyebrowsVariant": ["up"], "noseVariant": ["curve"], "earsVariant": ["attached"], "earringsProbability": 0, "clothesVariant": ["crew"],
        "shirtColor": ["#6bd9e9"], "baseColor": [f["tone"]], "hairColor": [f["color"]], "facialHairColor": [f["color"]], "glassesColor": ["#000000"],
        **_shared(f, choose, glasses="eyewear", facialHair="facial_hair"),
    }  # fmt: skip


def _adventurer(f: Mapping[str, str], choose: Callable) -> dict:
    return {
        "hairVariant": [choose("hair")], "mouthVariant": [choose("mouth")], "eyesVariant": ["variant19" if f["closed"] else "variant26"],
        "eyebrowsVariant": ["variant10"], "earringsProbability": 0, "hairColor": [f["color"]], "skinColor": [f["tone"]],
        **_shared(f, choose, glasses="eyewear", details="facial_hair"),
    }  # fmt: skip


def _big_smile(f: Mapping[str, str], choose: Callable) -> dict:
    return {
        "hairVariant": [choose("hair")], "mouthVariant": [choose("mouth")], "eyesVariant": ["normal"],
        "hairColor": [f["color"]], "skinColor": [f["tone"]], **_shared(f, choose, accessories="eyewear"),
    }  # fmt: skip


DRAWINGS: dict[str, Drawing] = {
    "avataaars": Drawing(
        view="46 26 188 188",
        hair={"bald": ["hat"], "buzzcut": ["theCaesar"], "shortCombover": ["shortFlat", "shortWaved"], "curly": ["curly"], "long": ["straight01"],
              "bobCut": ["bob"], "straightBun": ["bun"], "beanie": ["winterHat03"]},
        mouth={"smiling": ["smile", "twinkle"], "frowning": ["sad", "concerned"]},
        eyewear={"eyeglasses": ["prescription02"], "sunglasses": ["wayfarers"]},
        facial_hair={"beard": ["beardMedium"], "mustache": ["moustacheFancy"]},
        parts=_avataaars,
    ),
    "open-peeps": Drawing(
        view="130 50 500 500",
        hair={"bald": ["noHair1"], "shortCombover": ["pomp", "short1"], "curly": ["afro"], "long": ["long"], "bobCut": ["mediumStraight"],
              "straightBun": ["bun2"], "beanie": ["hatBeanie"]},
        mouth={"smiling": ["smileBig", "lovingGrin1"], "frowning": ["concerned", "solemn"]},
        eyewear={"eyeglasses": ["glasses3"], "sunglasses": ["sunglasses"]},
        facial_hair={"beard": ["full2"], "mustache": ["moustache5"]},
        parts=_open_peeps,
        colors=("black",),
    ),
    "pixel-art": Drawing(
        view="0 0 16 16",
        hair={"bald": ["short01"], "buzzcut": ["short14"], "shortCombover": ["short01", "short16"], "long": ["long07"], "bobCut": ["long13"], "beanie": ["short01"]},
        mouth={"smiling": ["happy09", "happy12"], "frowning": ["sad01"]},
        eyewear={"eyeglasses": ["light05"], "sunglasses": ["dark02"]},
        facial_hair={},  # its beards are drawn as shadows that dark hair makes invisible
        parts=_pixel_art,
    ),
    "voxel-art": Drawing(
        view="20 8 86 86",
        hair={"bald": ["short"], "buzzcut": ["short"], "shortCombover": ["sideSwept"], "curly": ["afro"], "long": ["longStraight"], "bobCut": ["bob"],
              "pigtails": ["buns"], "beanie": ["cap"]},
        mouth={"smiling": ["bigSmile", "laugh"], "frowning": ["frown", "flat"]},
        eyewear={"eyeglasses": ["square"], "sunglasses": ["shades"]},
        facial_hair={"beard": ["full"], "goatee": ["goatee"], "mustache": ["mustache"]},
        parts=_voxel_art,
    ),
    "micah": Drawing(
        view="45 35 280 280",
        hair={"bald": ["mrClean"], "shortCombover": ["fonze"], "long": ["full"], "bobCut": ["pixie"]},
        mouth={"smiling": ["laughing", "smile"], "frowning": ["frown", "sad"]},
        eyewear={"eyeglasses": ["round", "square"]},
        facial_hair={"beard": ["beard"]},
        parts=_micah,
    ),
    "adventurer": Drawing(
        view="80 110 600 600",
        hair={"buzzcut": ["short14"], "shortCombover": ["short10", "short01"], "curly": ["short03"], "long": ["long09"], "bobCut": ["long05"], "bobBangs": ["long07"],
              "pigtails": ["long15"], "straightBun": ["short05"]},
        mouth={"smiling": ["variant25", "variant23"], "frowning": ["variant14", "variant09"]},
        eyewear={"eyeglasses": ["variant02", "variant04"], "sunglasses": ["variant01"]},
        facial_hair={"mustache": ["mustache"]},
        parts=_adventurer,
    ),
    "big-smile": Drawing(
        view="0 30 440 440",
        hair={"buzzcut": ["shavedHead"], "shortCombover": ["shortHair"], "curly": ["curlyShortHair"], "long": ["straightHair"], "bobCut": ["wavyBob"], "bobBangs": ["bangs"],
              "straightBun": ["bunHair"]},
        mouth={"smiling": ["teethSmile", "openedSmile"], "frowning": ["unimpressed"]},
        eyewear={"eyeglasses": ["glasses"], "sunglasses": ["sunglasses"]},
        facial_hair={},
        parts=_big_smile,
    ),
}  # fmt: skip
_HATS = {"pixel-art": ["variant01", "variant08"]}
_GRAY = {"open-peeps": {"shortCombover": ["grayShort"], "curly": ["grayMedium"], "long": ["grayMedium"], "bobCut": ["grayMedium"], "straightBun": ["grayBun"]}}  # fmt: skip
_NEAREST = {  # hair that a style has no component for -> what is drawn instead, the first that it has
    "bald": ("buzzcut", "shortCombover"), "buzzcut": ("shortCombover",), "curly": ("shortCombover",), "bobBangs": ("bobCut",),
    "pigtails": ("straightBun", "long"), "straightBun": ("pigtails", "long"), "beanie": ("shortCombover",),
}  # fmt: skip


def project(style: np.ndarray, factors: Factors) -> Factors:
    """The factors that the styles can show: hair, beards and eyewear without a component become the nearest one or none."""
    columns = {name: factors[name].copy() for name in personas.CONTINUOUS}
    columns |= {name: factors[name].astype("<U16") for name in personas.DISCRETE}
    for name, drawing in DRAWINGS.items():
        rows = np.flatnonzero(style == name)
        for row in rows:
            hair = columns["hair"][row]
            if hair not in drawing.hair:
                columns["hair"][row] = next(h for h in _NEAREST[hair] if h in drawing.hair)
            if columns["facial_hair"][row] not in drawing.facial_hair:
                columns["facial_hair"][row] = "none"
            if columns["eyewear"][row] not in drawing.eyewear:
                columns["eyewear"][row] = "none"
            if columns["hair_color"][row] not in drawing.colors:
                columns["hair_color"][row] = drawing.colors[0]
    return Factors(columns)


# ---------------------------------------------------------------------------------------------------- sampling


@dataclass(frozen=True, eq=False)
class Avatars:
    """N avatars: ``style`` (N,) names, ``factors`` (N personas' factors that their styles can show), ``variant`` (N,) int.

    ``variant`` chooses among the components that mean the same. ``a[3]``, ``a[2:8]``, ``a[mask]`` are some of them.
    """

    style: np.ndarray
    factors: Factors
    variant: np.ndarray

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.style) - set(STYLES)):
            raise ValueError(f"no style {unknown}; choose from {list(STYLES)}")
        if not len(self.style) == len(self.factors) == len(self.variant):
            raise ValueError(
                f"{len(self.style)} styles, {len(self.factors)} faces and {len(self.variant)} variants; expected as many of each"
            )

    def __len__(self) -> int:
        return len(self.style)

    def __getitem__(self, rows) -> Avatars:  # noqa: ANN001
        if isinstance(rows, Tensor):
            rows = rows.cpu().numpy()
        rows = [rows] if isinstance(rows, int | np.integer) else rows
        return Avatars(self.style[rows], self.factors[rows], self.variant[rows])

    def __repr__(self) -> str:
        return f"Avatars(n={len(self)}, style={self.style[:4].tolist()}, …)"

    def replace(self, style: str | np.ndarray | None = None, **changes: float | str | np.ndarray) -> Avatars:
        """The same avatars with some factors, or the style, set; what the style cannot show is projected again."""
        new = self.style if style is None else np.broadcast_to(np.asarray(style), (len(self),)).astype("<U16")
        unknown = sorted(set(new) - set(STYLES))
        if unknown:
            raise ValueError(f"no style {unknown}; choose from {list(STYLES)}")
        return Avatars(new, project(new, self.factors.replace(**changes)), self.variant)


def sample(n: int, seed: int, style: str | None = None) -> Avatars:
    """Draw ``n`` avatars: factors from the personas' Bayesian network, the style by :data:`SHARES` (or the one given).

    The same seed gives the same avatars everywhere: only uniform numbers of PCG64 are used.
    """
    if style is not None and style not in STYLES:
        raise ValueError(f"no style {style!r}; choose one of {list(STYLES)}")
    factors = personas.sample(n, seed)
    uniform = np.random.Generator(np.random.PCG64([seed, 1])).random
    drawn = np.searchsorted(np.cumsum(SHARES)[:-1], uniform(n), side="right")
    styles = np.array(STYLES)[drawn] if style is None else np.full(n, style)
    styles, variant = styles.astype("<U16"), (uniform(n) * 60).astype(int)
    return Avatars(styles, project(styles, factors), variant)


def from_personas(factors: Factors) -> Avatars:
    """Faces of the personas world as avatars of the style *personas*."""
    n = len(factors)
    return Avatars(np.full(n, "personas", dtype="<U16"), factors, np.zeros(n, int))


# -------------------------------------------------------------------------------------------------- attributes

_BARE = ("bald", "beanie")  # no hair to be seen


def _gray(a: Avatars) -> np.ndarray:
    return (a.factors["age"] > 0.5) & ~np.isin(a.factors["hair"], _BARE)


def _colored(name: str) -> Callable[[Avatars], np.ndarray]:
    return lambda a: (
        (a.factors["hair_color"] == name) & (a.factors["age"] <= 0.5) & ~np.isin(a.factors["hair"], _BARE)
    )


RULES: dict[str, Callable[[Avatars], np.ndarray]] = {
    "smile": lambda a: a.factors["smile"] > 0,
    "glasses": lambda a: a.factors["eyewear"] == "eyeglasses",
    "sunglasses": lambda a: a.factors["eyewear"] == "sunglasses",
    "beard": lambda a: a.factors["facial_hair"] == "beard",
    "mustache": lambda a: a.factors["facial_hair"] == "mustache",
    "hat": lambda a: a.factors["hair"] == "beanie",
    "bald": lambda a: a.factors["hair"] == "bald",
    "long_hair": lambda a: np.isin(a.factors["hair"], ("long", "bobCut", "bobBangs")),
    "black_hair": _colored("black"),
    "brown_hair": _colored("brown"),
    "blond_hair": _colored("blond"),
    "red_hair": _colored("red"),
    "gray_hair": _gray,
}
ATTRIBUTES: tuple[str, ...] = tuple(RULES)


def attributes(avatars: Avatars) -> Tensor:
    """The binary attributes (N, 13) bool, columns in the order of :data:`ATTRIBUTES`."""
    return torch.from_numpy(np.stack([rule(avatars) for rule in RULES.values()], axis=1))


def styles_with(attribute: str) -> tuple[str, ...]:
    """The styles that can show an attribute of :data:`ATTRIBUTES`."""
    if attribute not in ATTRIBUTES:
        raise ValueError(f"no attribute {attribute!r}; choose one of {list(ATTRIBUTES)}")
    shown = {"personas"}
    for style, drawing in DRAWINGS.items():
        can = {
            "glasses": "eyeglasses" in drawing.eyewear, "sunglasses": "sunglasses" in drawing.eyewear,
            "beard": "beard" in drawing.facial_hair, "mustache": "mustache" in drawing.facial_hair,
            "hat": "beanie" in drawing.hair, "bald": "bald" in drawing.hair,
        } | {f"{c}_hair": c in drawing.colors for c in HAIR_COLORS}  # fmt: skip
        shown |= {style} if can.get(attribute, True) else set()
    return tuple(s for s in STYLES if s in shown)


CLASSES: tuple[str, ...] = tuple(
    f"{style}, {mood}, {eyes}"
    for style in STYLES
    for mood in ("frowning", "smiling")
    for eyes in ("no glasses", "glasses")
)


def class_id(style: str, smiling: bool, glasses: bool) -> int:
    """The class of :data:`CLASSES` (style x smiling x glasses) as a number from 0 to 31."""
    if style not in STYLES:
        raise ValueError(f"no style {style!r}; choose one of {list(STYLES)}")
    return 4 * STYLES.index(style) + 2 * bool(smiling) + bool(glasses)


def class_ids(avatars: Avatars) -> Tensor:
    """The classes (N,) long of avatars; sunglasses are no glasses."""
    style = torch.tensor([STYLES.index(s) for s in avatars.style])
    smiling, glasses = (torch.from_numpy(RULES[name](avatars)).long() for name in ("smile", "glasses"))
    return 4 * style + 2 * smiling + glasses


# ---------------------------------------------------------------------------------------------------- captions

STYLE_WORDS = {  # one word a style
    "personas": "personas", "avataaars": "avataaars", "open-peeps": "peeps", "pixel-art": "pixel", "voxel-art": "voxel",
    "micah": "micah", "adventurer": "adventurer", "big-smile": "bold",
}  # fmt: skip
MEDIA = ("photo", "picture", "drawing", "portrait", "image", "cartoon")
_MOODS = {True: ("smiling", "happy", "cheerful"), False: ("frowning", "unhappy", "sad")}
_VERBS = {True: "smiles", False: "frowns"}
_YEARS = {True: ("old", "elderly"), False: ("young",)}
_HAIR = {
    "bald": ("a bald head", "no hair"), "beanie": ("a hat",), "buzzcut": ("{} hair", "cropped {} hair", "short {} hair"),
    "shortCombover": ("{} hair", "short {} hair"), "curly": ("{} hair", "curly {} hair"), "long": ("{} hair", "long {} hair"),
    "bobCut": ("{} hair", "long {} hair", "a {} bob"), "bobBangs": ("{} hair", "long {} hair", "{} hair with bangs"),
    "pigtails": ("{} hair", "{} pigtails"), "straightBun": ("{} hair", "a {} bun"),
}  # fmt: skip
_EYEWEAR = {"none": ("no glasses",), "eyeglasses": ("glasses", "eyeglasses"), "sunglasses": ("sunglasses",)}
_FACIAL = {"none": ("no beard",), "beard": ("a beard",), "goatee": ("a goatee",), "mustache": ("a mustache",)}
_FRAMES = (  # {a}: "a photo", {b}: "a micah photo", {s}: "micah", {p}: the person
    "{a} of {p}", "{b} of {p}", "{p}", "{p}, {s} style", "{a} of {p} in {s} style", "{b} of {p}",
)  # fmt: skip
WORDS: tuple[str, ...] = tuple(
    sorted(
        set(
            " ".join(
                [*_FRAMES, *MEDIA, *STYLE_WORDS.values(), *_VERBS.values(), *HAIR_COLORS, "gray an person who and"]
                + [w for table in (_MOODS, _YEARS, _HAIR, _EYEWEAR, _FACIAL) for words in table.values() for w in words]
            ).translate(str.maketrans(",", " "))
            .split()
        )
        - {"{a}", "{b}", "{s}", "{p}", "{}"}
    )
)  # fmt: skip


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def captions(avatars: Avatars, seed: int = 0) -> list[str]:
    """One English caption an avatar, lower case, in words of :data:`WORDS`; another seed phrases it otherwise.

    A caption says whether the person smiles, mostly; each other thing that can be seen is named or left out by chance, so
    that short prompts are as common as long ones. The words "old" and "young" are used where age can be seen: by
    wrinkles in the style personas, by gray hair in the others.
    """
    choices = np.random.Generator(np.random.PCG64([seed, 2]))
    return [_caption(avatars, k, choices.random(24)) for k in range(len(avatars))]


def _caption(avatars: Avatars, k: int, u: np.ndarray) -> str:
    """The caption of avatar ``k``; each choice takes its own of the uniform numbers ``u``."""
    f, style, numbers = avatars.factors, avatars.style[k], iter(u)

    def pick(options: Sequence[str]) -> str:
        return options[int(next(numbers) * len(options))]

    hair, old = str(f["hair"][k]), bool(f["age"][k] > 0.5)
    smiling = bool(f["smile"][k] > 0)
    mood, manner = pick(_MOODS[smiling]), next(numbers)  # before the noun, after it, or not said
    years = pick(_YEARS[old])
    age_seen = style == "personas" or hair not in _BARE
    who = ([mood] if manner < 0.75 else []) + ([years] if age_seen and next(numbers) < 0.3 else [])
    color = "gray" if old else str(f["hair_color"][k])
    details = [(pick(_HAIR[hair]).format(color), 0.5)]
    details += [(pick(_EYEWEAR[str(f["eyewear"][k])]), 0.15 if f["eyewear"][k] == "none" else 0.6)]
    details += [(pick(_FACIAL[str(f["facial_hair"][k])]), 0.08 if f["facial_hair"][k] == "none" else 0.6)]
    named = [words for words, chance in details if next(numbers) < chance]
    turn = int(next(numbers) * len(named)) if named else 0
    named = named[turn:] + named[:turn]
    person = _article(" ".join([*who, "person"])) + (
        f" who {_VERBS[smiling]}" if 0.75 <= manner < 0.87 else ""
    )
    last = " and " if next(numbers) < 0.4 else ", "
    person += (
        f" with {last.join([', '.join(named[:-1]), named[-1]] if named[:-1] else named)}" if named else ""
    )
    medium = pick(MEDIA)
    styled = _article(f"{STYLE_WORDS[style]} {medium}")
    return pick(_FRAMES).format(a=_article(medium), b=styled, s=STYLE_WORDS[style], p=person)


def prompt(style: str | None = None, **attributes: bool) -> str:
    """The plain caption of what is asked for: ``prompt("personas", smile=True)``.

    ``attributes``: names of :data:`ATTRIBUTES`, or ``old``. False is said of smile ("frowning"), old ("young"), glasses and
    beard ("no glasses"); any other attribute can only be asked for.
    """
    known = {"smile", "old", *ATTRIBUTES}
    if unknown := sorted(set(attributes) - known):
        raise ValueError(f"no attribute {unknown}; choose from {sorted(known)}")
    if style is not None and style not in STYLES:
        raise ValueError(f"no style {style!r}; choose one of {list(STYLES)}")
    who = [_MOODS[attributes["smile"]][0]] if "smile" in attributes else []
    who += [_YEARS[attributes["old"]][0]] if "old" in attributes else []
    said = {
        "glasses": ("glasses", "no glasses"), "sunglasses": ("sunglasses",), "beard": ("a beard", "no beard"), "mustache": ("a mustache",),
        "hat": ("a hat",), "bald": ("a bald head",), "long_hair": ("long hair",),
    } | {f"{c}_hair": (f"{c} hair",) for c in (*HAIR_COLORS, "gray")}  # fmt: skip
    named = []
    for name in (a for a in attributes if a not in ("smile", "old")):
        if not attributes[name] and len(said[name]) == 1:
            raise ValueError(
                f"a caption never says that {name!r} is missing; only smile, old, glasses and beard can be False"
            )
        named.append(said[name][0 if attributes[name] else 1])
    person = _article(" ".join([*who, "person"])) + (f" with {', '.join(named)}" if named else "")
    medium = "drawing" if style is None else f"{STYLE_WORDS[style]} drawing"
    return f"{_article(medium)} of {person}"


# --------------------------------------------------------------------------------------------------- rendering


@lru_cache(maxsize=8)
def _style(name: str):  # noqa: ANN202
    from dicebear import Style

    return Style(json.loads(files("dicebear_styles").joinpath(f"{name}.json").read_text("utf-8")))


_DIGITS = {"mouth": 1, "hair": 2, "hat": 4, "gray": 2, "eyewear": 3, "facial_hair": 5}
"""What an avatar's ``variant`` is divided by for each part, so that not all parts vary together."""


def svg(avatars: Avatars, k: int) -> str:
    """The drawing of avatar ``k``."""
    style, variant = str(avatars.style[k]), int(avatars.variant[k])
    f = {name: avatars.factors[name][k] for name in personas.FACTORS}
    if style == "personas":
        return personas._svg(f)
    from dicebear import Avatar

    drawing = DRAWINGS[style]
    old, hair = bool(f["age"] > 0.5), str(f["hair"])
    tables = {
        "mouth": drawing.mouth["smiling" if f["smile"] > 0 else "frowning"], "hair": drawing.hair[hair], "hat": _HATS.get(style, ("",)),
        "gray": _GRAY.get(style, {}).get(hair, drawing.hair[hair]), "eyewear": drawing.eyewear.get(str(f["eyewear"]), ("",)),
        "facial_hair": drawing.facial_hair.get(str(f["facial_hair"]), ("",)),
    }  # fmt: skip

    def choose(part: str) -> str:
        return tables[part][variant // _DIGITS[part] % len(tables[part])]

    seen = {
        "hair": hair, "eyewear": str(f["eyewear"]), "facial_hair": str(f["facial_hair"]), "gray": old, "closed": f["closed_eyes"] == "yes",
        "color": SILVER if old else HAIR_COLORS[str(f["hair_color"])], "tone": SKIN_COLORS[str(f["skin"])],
    }  # fmt: skip
    text = Avatar(_style(style), {"seed": "avatars", **drawing.parts(seen, choose)}).to_string()
    head, body = text[: text.index("<metadata")], text[text.index("</metadata>") + len("</metadata>") :]
    start = head.index('viewBox="') + len('viewBox="')
    head = head[:start] + drawing.view + head[head.index('"', start) :]
    x, y, w, h = drawing.view.split()
    return head + f'<rect x="{x}" y="{y}" width="{w}" height="{h}" fill="#e8eef2"/>' + body


def render_uint8(avatars: Avatars, progress: bool = False) -> np.ndarray:
    """Render avatars as (N, 64, 64, 3) uint8. About 4 ms an avatar."""
    from tqdm.auto import trange

    rows = trange(len(avatars), desc="rendering", disable=not progress, leave=False)
    return np.stack([render_svg(svg(avatars, k), SIZE) for k in rows])


def render(avatars: Avatars, progress: bool = False) -> Tensor:
    """Render avatars as (N, 3, 64, 64) float32 in [-1, 1]."""
    return to_tensor(render_uint8(avatars, progress))


# --------------------------------------------------------------------------------------------------- data sets


def load(split: str = "test", n: int | None = None, *, progress: bool = True) -> tuple[Tensor, Avatars]:
    """Avatars of a split: images (n, 3, 64, 64) float32 in [-1, 1] and :class:`Avatars`.

    ``train`` (24,000), ``val`` and ``test`` (1,000 each) are rendered on the first call and kept in the cache.
    """
    images, avatars = load_uint8(split, n, progress=progress)
    return to_tensor(images), avatars


def load_uint8(split: str, n: int | None = None, *, progress: bool = True) -> tuple[np.ndarray, Avatars]:
    """As :func:`load`, images as (n, 64, 64, 3) uint8."""
    if split not in SPLIT_SEEDS:
        raise ValueError(f"no split {split!r}; choose one of {sorted(SPLIT_SEEDS)}")
    total = SPLIT_SIZES[split]
    n = total if n is None else n
    if not 1 <= n <= total:
        raise ValueError(f"split {split!r} has {total} avatars, got n={n}")
    everyone = sample(total, SPLIT_SEEDS[split])
    folder = personas.cache_dir().parent / "avatars" / f"{split}-{_version(split)}"
    images = render_chunks(
        folder, n, total, lambda rows: render_uint8(everyone[rows]), f"avatars/{split}" if progress else None
    )
    return images, everyone[:n]


@lru_cache
def _version(split: str) -> str:
    """A short hash of what decides the pixels, so that a stale cache is never read."""
    import hashlib
    from importlib.metadata import version

    first = sample(200, SPLIT_SEEDS[split])
    drawings = [svg(first, k) for k in range(len(first))]
    return hashlib.sha256("".join([version("resvg_py"), *drawings]).encode()).hexdigest()[:12]
