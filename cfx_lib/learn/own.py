"""What notebook 10 needs beside the library: a folder on disk, what a judge sees, and the casts of `paper` mode."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cfx_lib import ACE, DVCE, LDCE, DiME, zoo
from cfx_lib.cli.pictures import picture
from cfx_lib.methods.prompts import class_prompts
from cfx_lib.train.folder_classifier import normalisation, train_classifier
from cfx_lib.worlds import avatars, folders
from cfx_lib.worlds.traits import TRAITS, Trait, give, labelled

__all__ = [
    "NEEDS",
    "TRAITS",
    "Cast",
    "Trait",
    "celeba_hq",
    "give",
    "imagenet",
    "labelled",
    "needs",
    "offline_answer",
    "prompts",
    "sees",
    "write_folder",
]


def sees(oracle: Any, trait: str, x: Tensor) -> Tensor:
    """Whether the oracle of personas sees the trait in each image: (N,3,64,64) -> (N,) bool."""
    if trait == "frown":
        return ~sees(oracle, "smile", x)
    return oracle.for_attribute(trait).predict(x) == 1


def prompts(label: str) -> dict[int, str]:
    """What LDCE asks the text-to-image model `avatars/sd` for: class 1 has the trait, class 0 has it not."""
    name, yes = TRAITS[label].word
    without = {} if name == "hat" else {name: not yes}  # no caption says that a hat is missing
    return {0: avatars.prompt("personas", **without), 1: avatars.prompt("personas", **{name: yes})}


def write_folder(folder: str | Path, x: Tensor, labels: Tensor, classes: Sequence[str]) -> Path:
    """Write images (N,C,H,W) in [-1,1] as PNG files into one subfolder a class, in place of what such a folder held.

    Returns the folder. Raises ValueError for labels that no class has, or a folder that holds anything else than classes.
    """
    folder = Path(folder)
    if len(x) != len(labels) or not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
        raise ValueError(
            f"{len(x)} images, labels {int(labels.min())} to {int(labels.max())}, {len(classes)} classes; expected one "
            "label an image, and a class for each."
        )
    others = [p.name for p in folder.iterdir() if p.name not in classes] if folder.is_dir() else []
    if others:
        raise ValueError(
            f"{folder} holds {', '.join(sorted(others)[:3])}; expected an empty folder, or a new one."
        )
    for name in classes:
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(parents=True)
    for k, (image, label) in enumerate(zip(x, labels.tolist(), strict=True)):
        picture(image).save(folder / classes[label] / f"{k:05}.png", compress_level=1)
    return folder


# ---------------------------------------------------------------------------------------------------- paper mode

NEEDS: Mapping[str, tuple[str, str | None, str]] = {  # role -> (variable, default, what it is)
    "images": ("CFX_IMAGES", None, "a folder of photographs of things that ImageNet knows"),
    "classifier": ("CFX_CLASSIFIER", "resnet50.tv_in1k", "the classifier of ImageNet to be explained"),
    "denoiser": ("CFX_DENOISER", "adm-imagenet-256", "ACE and DVCE"),
    "robust": ("CFX_ROBUST", "resnet50-robust-l2-3", "the cone of DVCE"),
    "text model": ("CFX_SD", "mini-sd", "LDCE"),
    "faces": ("CFX_HQ", None, "the folder of CelebAMask-HQ"),
    "denoiser of faces": ("CFX_HQ_DENOISER", "ddpm-celebahq-256", "DiME and ACE on faces"),
    "classifier of faces": (
        "CFX_HQ_CLASSIFIER",
        None,
        "of smiles; without one a DenseNet-121 is trained on the faces",
    ),
}
"""What `paper` mode asks for; a default is a name of `zoo.published`, and a variable may name any other, or a folder."""


@dataclass(frozen=True)
class Cast:
    """Who takes part in `paper` mode: `x` (N,3,H,W), the classes wanted, and how each method is made (it may be missing)."""

    title: str
    classifier: Any
    x: Tensor
    target: Tensor
    methods: Mapping[str, Callable[[], Any]]


def named(role: str) -> str | None:
    """What was chosen for a role: the variable's value, else the default."""
    variable, default, _ = NEEDS[role]
    return os.environ.get(variable) or default


def needs() -> list[dict[str, str]]:
    """The table of `NEEDS` with licence, size and pages of the published defaults."""
    rows = []
    for role, (variable, default, what) in NEEDS.items():
        known = zoo.published().get(default or "")
        size = f"{known.size / 1e9:.1f} GB" if known and known.size else ""
        rows.append(
            {"role": role, "for": what, "variable": variable, "default": default or "none: give one",
             "licence": known.licence if known else "", "size": size}
        )  # fmt: skip
    return rows


def offline_answer(name: str) -> str:
    """What `zoo.load` says of a checkpoint where nothing may be downloaded: its error, or that the checkpoint is here."""
    with _environment("CFX_OFFLINE", "1"):
        try:
            zoo.load(name)
        except FileNotFoundError as error:
            return str(error)
    return f"{name} is in the cache of this machine."


@contextmanager
def _environment(variable: str, value: str) -> Any:
    before = os.environ.get(variable)
    os.environ[variable] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


def imagenet(n: int, device: str, settings: Mapping[str, Mapping[str, Any]]) -> Cast:
    """`n` photographs, asked for the class that the classifier finds second likeliest; ACE, DVCE and LDCE as published.

    `settings`: changes of the methods' settings, by their names. Raises FileNotFoundError for what is not there.
    """
    x = _photographs(n)
    classifier = _load("classifier", device)
    with torch.no_grad():
        target = torch.cat([classifier(one[None].to(device)) for one in x]).topk(2).indices[:, 1].cpu()
    names = [name.split(",")[0] for name in classifier.names]

    def ldce() -> LDCE:
        model = zoo.latent_diffusion(named("text model"), dtype=_dtype(device), device=device)
        asked = class_prompts("imagenet", {k: names[k] for k in target.tolist()})
        changes = {"norm": "released"} | dict(settings.get("LDCE", {}))
        return LDCE.preset("paper/imagenet", model, classifier, asked, **changes)

    def ace() -> ACE:
        changes = {"checkpointing": True} | dict(settings.get("ACE", {}))
        return ACE.preset("paper/imagenet", _load("denoiser", device), classifier, **changes)

    def dvce() -> DVCE:
        parts = _load("denoiser", device), classifier
        return DVCE.preset(
            "paper/imagenet", *parts, robust=_load("robust", device), **settings.get("DVCE", {})
        )

    return Cast("ImageNet", classifier, x, target, {"ACE": ace, "DVCE": dvce, "LDCE": ldce})


def celeba_hq(n: int, device: str, settings: Mapping[str, Mapping[str, Any]]) -> Cast:
    """`n` test faces of CelebA-HQ, asked for the other answer about the smile; DiME and ACE as published.

    Without a classifier one is trained on the training faces by the function that trains yours (`settings["training"]`).
    Raises FileNotFoundError for what is not there.
    """
    root = named("faces")
    if root is None:
        raise FileNotFoundError(
            "no faces of CelebA-HQ were given; expected the folder of CelebAMask-HQ in CFX_HQ "
            "(https://github.com/switchablenorms/CelebAMask-HQ, for non-commercial research). Or leave CFX_MODE on fast or full."
        )
    size = int(os.environ.get("CFX_SIZE", "256"))
    faces = folders.celeba_hq(root, "Smiling", "test", size)
    x, _ = faces.load(min(n, len(faces)))
    if named("classifier of faces"):
        classifier = _load("classifier of faces", device)
    else:
        classifier = _trained(
            folders.celeba_hq(root, "Smiling", "train", size), settings.get("training", {})
        ).to(device)
    target = 1 - classifier.predict(x.to(device)).cpu()

    def dime() -> DiME:
        return DiME.preset(
            "paper/celebahq", _load("denoiser of faces", device), classifier, **settings.get("DiME", {})
        )

    def ace() -> ACE:
        changes = {"checkpointing": True} | dict(settings.get("ACE", {}))
        return ACE.preset("paper/celebahq", _load("denoiser of faces", device), classifier, **changes)

    return Cast("CelebA-HQ, smiles", classifier, x, target, {"DiME": dime, "ACE": ace})


def _trained(images: folders.Images, options: Mapping[str, Any]) -> Any:
    import timm

    options = dict(options)
    network = timm.create_model(options.pop("architecture", "densenet121"), num_classes=len(images.classes))
    trained, _ = train_classifier(
        network, images, **{"steps": 2000, "batch": 32, "precision": "bf16"} | options
    )
    return zoo.wrap(trained, len(images.classes), **normalisation(network), names=images.classes).eval()


def _photographs(n: int) -> Tensor:
    folder = named("images")
    if folder is None:
        raise FileNotFoundError(
            "no photographs were given; expected a folder of them in CFX_IMAGES. Or leave CFX_MODE on fast or full."
        )
    found = folders.open_folder(folder, int(os.environ.get("CFX_SIZE", "256")))
    return found.load(min(n, len(found)))[0]


def _load(role: str, device: str) -> Any:
    return zoo.load(named(role), device=device, dtype=_dtype(device))


def _dtype(device: str) -> str:
    return "fp32" if device == "cpu" else "bf16"
