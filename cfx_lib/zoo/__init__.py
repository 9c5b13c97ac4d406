"""Names to models: `zoo.load("personas/ddpm")`, a local folder, or a hub id.

Importing this package is cheap: torch, timm and diffusers are imported when something is first loaded.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cfx_lib.zoo.checkpoints import (
        classifier_from_file,
        embedding_from_file,
        facenet_from_file,
        lpips_from_file,
        openai_denoiser,
        simsiam_from_file,
    )
    from cfx_lib.zoo.checksums import data_dir
    from cfx_lib.zoo.classifiers import (
        AttributeClassifier,
        BinaryClassifier,
        ClassClassifier,
        FeatureNet,
        WrappedClassifier,
        save_classes,
        save_classifier,
        wrap,
    )
    from cfx_lib.zoo.denoiser import Denoiser, save_denoiser
    from cfx_lib.zoo.features import (
        AutoencoderSet,
        Embedding,
        PerceptualTrunk,
        save_autoencoders,
        save_embedding,
        save_trunk,
    )
    from cfx_lib.zoo.latent import LatentDiffusion
    from cfx_lib.zoo.latent_files import latent_diffusion
    from cfx_lib.zoo.manifest import Published, published
    from cfx_lib.zoo.network import download, offline
    from cfx_lib.zoo.registry import load, names

_HOME = {
    "load": "registry",
    "names": "registry",
    "AttributeClassifier": "classifiers",
    "BinaryClassifier": "classifiers",
    "ClassClassifier": "classifiers",
    "FeatureNet": "classifiers",
    "WrappedClassifier": "classifiers",
    "save_classes": "classifiers",
    "save_classifier": "classifiers",
    "wrap": "classifiers",
    "Denoiser": "denoiser",
    "save_denoiser": "denoiser",
    "AutoencoderSet": "features",
    "Embedding": "features",
    "PerceptualTrunk": "features",
    "save_autoencoders": "features",
    "save_embedding": "features",
    "save_trunk": "features",
    "LatentDiffusion": "latent",
    "latent_diffusion": "latent_files",
    "data_dir": "checksums",
    "Published": "manifest",
    "published": "manifest",
    "classifier_from_file": "checkpoints",
    "embedding_from_file": "checkpoints",
    "facenet_from_file": "checkpoints",
    "lpips_from_file": "checkpoints",
    "openai_denoiser": "checkpoints",
    "simsiam_from_file": "checkpoints",
    "download": "network",
    "offline": "network",
}
__all__ = [
    "AttributeClassifier",
    "AutoencoderSet",
    "BinaryClassifier",
    "ClassClassifier",
    "Denoiser",
    "Embedding",
    "FeatureNet",
    "LatentDiffusion",
    "PerceptualTrunk",
    "Published",
    "WrappedClassifier",
    "classifier_from_file",
    "data_dir",
    "download",
    "embedding_from_file",
    "facenet_from_file",
    "latent_diffusion",
    "load",
    "lpips_from_file",
    "names",
    "offline",
    "openai_denoiser",
    "published",
    "save_autoencoders",
    "save_classes",
    "save_classifier",
    "save_denoiser",
    "save_embedding",
    "save_trunk",
    "simsiam_from_file",
    "wrap",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"cfx_lib.zoo.{_HOME[name]}"), name)
    raise AttributeError(f"cfx_lib.zoo has no {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
