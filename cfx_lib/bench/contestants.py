"""Who takes part in the leaderboard on rendered faces: the methods with their presets, and what they are compared with.

A world of one's own needs what `Personas` has: `methods`, `references`, `sources`, `weights`, `load`, `images`, `explain` and
`judges`, and an argument `device` if it is to compute elsewhere than on the CPU. It is named by its module and class:
`--world my_package.my_module:MyWorld`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from cfx_lib import zoo
from cfx_lib.batching import explain_in_batches
from cfx_lib.bench import ace_study, dime_study, dvce_study, ldce_faces
from cfx_lib.bench.dime_study import classifier_of, dime, faces, preset_of
from cfx_lib.bench.kept import pretended
from cfx_lib.methods.ace import ACE
from cfx_lib.methods.baselines import PGD
from cfx_lib.methods.dime import DiME
from cfx_lib.methods.time import TIME, Tokens
from cfx_lib.names import nearest
from cfx_lib.types import CFResult
from cfx_lib.worlds import personas

WORDS = {
    ("smile-old", "smile"): "avatars/tokens-smile",
    ("smile-shortcut", "smile"): "avatars/tokens-shortcut",
}
"""TIME's words: (classifier, attribute) -> where they are shipped."""
GENERATORS, JUDGES = ("denoiser", "model"), ("classifier", "robust")
"""The fields of a method that hold networks: what makes images, and what looks at them."""


class Personas:
    """Test faces explained towards the other class of a classifier, `n` of them, half of either class.

    classifier: "NAME:ATTRIBUTE", one of the shipped ones of faces. Raises ValueError for one that is not there.
    device: where the methods compute; images, references and judges stay on the CPU.
    """

    methods = {
        "copy": "copy of the input",
        "other": "another face",
        "truth": "true counterfactual",
        "pgd": "PGD",
        "dime": "DiME",
        "ace-l1": "ACE l1",
        "ace-l2": "ACE l2",
        "dvce": "DVCE",
        "svce": "SVCE",
        "blended": "Blended Diffusion",
        "ldce-no-consensus": "LDCE, no consensus",
        "ldce-cls": "LDCE-cls",
        "ldce-txt": "LDCE-txt",
        "time": "TIME",
    }
    """Name -> what tables call it, in their order."""
    references = ("copy", "other", "truth")
    """Who costs nothing: what nothing, too much, and exactly the right change would score."""
    classifier = "smile-old:smile"
    weights = ("weights/personas/", "weights/avatars/", "personas/")
    """What the counterfactuals depend on, as the beginnings of paths in data/SHA256SUMS."""
    sources = (
        "diffusion.py",
        "types.py",
        "checks.py",
        "batching.py",
        "methods",
        "worlds",
        "zoo",
        *(
            f"bench/{name}.py"
            for name in ("contestants", "dime_study", "ace_study", "dvce_study", "ldce_faces")
        ),
    )
    """The code that they depend on."""

    def __init__(self, n: int, classifier: str | None = None, device: str = "cpu") -> None:
        self.n, self.name, self.attribute = n, *_split(classifier or self.classifier)
        self.device = device
        if n < 2 or n % 2:
            raise ValueError(f"n = {n}; expected an even number of faces, half of either class.")
        try:
            self._others = faces("test", self.attribute, 4 * n)[0][n:]
        except RuntimeError as error:
            raise ValueError(f"n = {n} is too large for the 1,000 test faces; use 100 at most.") from error

    @cached_property
    def judge(self) -> Any:
        """The classifier that is explained."""
        return classifier_of(self.name, self.attribute)

    @cached_property
    def images(self) -> tuple[Tensor, Tensor]:
        """The faces (n,3,64,64) and the classes to reach, (n,) long: those that the classifier does not give them."""
        x, _ = faces("test", self.attribute, self.n)
        return x, 1 - self.judge.predict(x)

    def judges(self) -> dict[str, Any]:
        """Who judges the counterfactuals, as `evaluate` takes it."""
        named = {"classifier": self.judge, "oracle": dime_study._model("personas/oracle")}
        return named | {"attribute": self.attribute, "truth": True}

    def load(self, method: str) -> Any:
        """The method with its networks; None for a reference. Raises ValueError where it cannot explain this classifier."""
        if method in self.references:
            return None
        return _loaded(self.name, self.attribute, method, self.device)

    def explain(self, method: str, rows: slice, seed: int) -> CFResult:
        """Explain some of the images; on an accelerator half as many at a time wherever its memory runs out."""
        x, target = (part[rows] for part in self.images)
        if method in self.references:
            return pretended(x, self._shown(method, rows), target, self.judge)
        if self.device == "cpu":
            return self.load(method).explain(x, target, seed=seed, progress=False)
        return explain_in_batches(self.load(method), x, target, seed=seed, progress=False)

    def _shown(self, reference: str, rows: slice) -> Tensor:
        """What stands in the place of the counterfactuals."""
        x, target = self.images
        if reference == "copy":
            return x[rows]
        if reference == "other":
            return self._another[rows]
        factors = faces("test", self.attribute, self.n)[1][torch.arange(self.n)[rows].numpy()]
        factor = personas.FACTOR_OF[self.attribute]
        return personas.true_counterfactual(factors, factor, self.judge, target[rows])[0]

    @cached_property
    def _another(self) -> Tensor:
        """For each face one of the target class, none of them twice and none of those that are explained."""
        pools = {1: iter(self._others[::2]), 0: iter(self._others[1::2])}
        return torch.stack([next(pools[wanted]) for wanted in self.images[1].tolist()])


@lru_cache(maxsize=4)
def _loaded(name: str, attribute: str, method: str, device: str) -> Any:
    made = _makers(name, attribute)[method]()
    return made if device == "cpu" else reloaded(made, device=device)


def reloaded(
    method: Any,
    *,
    generator: Mapping[str, Any] | None = None,
    classifier: Mapping[str, Any] | None = None,
    **options: Any,
) -> Any:
    """The method with its networks loaded again by their names; settings, prompts and words stay as they are.

    options: of `zoo.load` for all networks, such as dtype, compile, device; those of `generator` are for what makes images
    (the denoiser, or the latent model) alone, those of `classifier` for what looks at them. What is not said stays as it was.
    """
    known, found = {entry.name for entry in fields(method)}, {}
    for names, more in ((GENERATORS, generator), (JUDGES, classifier)):
        for name in known.intersection(names):
            found[name] = _again(getattr(method, name), {**options, **(more or {})})
    if "predict" in known:  # TIME knows no more of its classifier
        found["predict"] = _again(method.predict.__self__, {**options, **(classifier or {})}).predict
    return replace(method, **found)


def _again(network: Any, options: Mapping[str, Any]) -> Any:
    """A network of the zoo, loaded anew with other options; None for none."""
    if network is None:
        return None
    name, _, attribute = network.name.partition(":")
    inside = getattr(network, "classifier", network)
    inside = getattr(inside, "runner", inside)
    kept = {"dtype": "bf16" if inside.bf16 else "fp32", "channels_last": inside.channels_last}
    loaded = zoo.load(name, **{**kept, **options})
    return loaded.for_attribute(attribute) if attribute else loaded


def _makers(name: str, attribute: str) -> dict[str, Callable[[], Any]]:
    """The methods on a classifier, each with its preset for it; SVCE, made for robust networks, gets the explained one."""
    full = f"personas/{name}:{attribute}"
    own = classifier_of(name, attribute)
    return {
        "pgd": lambda: PGD(own),
        "dime": lambda: dime(own, preset_of(DiME, name, attribute)),
        "ace-l1": lambda: ace_study.ace(name, attribute),
        "ace-l2": lambda: _ace_l2(name, attribute),
        "dvce": lambda: dvce_study.dvce(full),
        "svce": lambda: dvce_study.svce(full, classifier=own),
        "blended": lambda: dvce_study.blended(full),
        "ldce-no-consensus": lambda: ldce_faces.ldce(name, attribute, consensus=False),
        "ldce-cls": lambda: ldce_faces.ldce(name, attribute, "cls"),
        "ldce-txt": lambda: ldce_faces.ldce(name, attribute),
        "time": lambda: _time(name, attribute),
    }


def _ace_l2(name: str, attribute: str) -> ACE:
    preset = preset_of(ACE, name, attribute)
    return ace_study.ace(name, attribute, preset, **ace_study.l2_settings(preset))


def _time(name: str, attribute: str) -> TIME:
    """TIME on the labels alone, with the words that it has learned about this classifier."""
    if (name, attribute) not in WORDS:
        known = ", ".join(":".join(key) for key in WORDS)
        raise ValueError(f"TIME has learned no words for {name}:{attribute}; there are some for {known}.")
    model, tokens = ldce_faces.latent(ldce_faces.MODELS["txt"]), Tokens.load(WORDS[name, attribute])
    return TIME.preset("fast", model, classifier_of(name, attribute).predict, tokens)


def _split(classifier: str) -> tuple[str, str]:
    """(name, attribute) of "NAME:ATTRIBUTE", for a shipped classifier. Raises ValueError."""
    name, _, attribute = classifier.removeprefix("personas/").partition(":")
    if attribute not in personas.FACTOR_OF:
        known = " or ".join(f"{name}:{a}" for a in personas.FACTOR_OF)
        raise ValueError(
            f"classifier = {classifier!r}; expected a classifier of faces and an attribute whose true change is known, {known}."
            f"{nearest(attribute, personas.FACTOR_OF)}"
        )
    try:
        classifier_of(name, attribute)
    except (FileNotFoundError, AttributeError) as error:
        raise ValueError(f"classifier = {classifier!r}: {error}") from error
    return name, attribute
