"""Loading a published checkpoint of the manifest by its short name: `zoo.load("sd-1.4")`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from cfx_lib.zoo.manifest import Published
from cfx_lib.zoo.network import check_sha256, download, hub_problem, offline

__all__ = ["READERS", "file_of", "load_published"]


def load_published(entry: Published, **options: Any) -> nn.Module:
    """A published checkpoint, downloaded on the first call and checked where its sum is known. `options`: see `load_folder`.

    What LPIPS, DiME's perceptual term and FID look through always computes in float32, as published: `options` are not for them.

    Raises FileNotFoundError when offline and not in the cache, gated, or not there; ValueError when damaged.
    """
    return READERS[entry.format](entry, **options)


def file_of(entry: Published) -> Path:
    """The one file of an entry, from the cache or the network, checked."""
    if "://" in entry.where:
        return download(entry.where, entry.sha256, name=entry.file)
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(entry.where, entry.file, revision=entry.revision, local_files_only=offline())
    except Exception as error:  # the hub client raises many kinds: HTTP, connection, validation, cache
        raise FileNotFoundError(hub_problem(entry.where, error, entry.revision, file=entry.file)) from error
    return check_sha256(Path(path), entry.sha256)


def _hub(entry: Published, **options: Any) -> nn.Module:
    from cfx_lib.zoo.registry import fetch, load_folder

    folder = fetch(entry.where, entry.pickle, revision=entry.revision)
    return load_folder(folder, entry.name, entry.pickle, **options)


def _openai(entry: Published, **options: Any) -> nn.Module:
    from cfx_lib.zoo.checkpoints import openai_denoiser

    return openai_denoiser(file_of(entry), entry.options, name=entry.name, **options)


def _robust(entry: Published, **options: Any) -> nn.Module:
    from cfx_lib.zoo.checkpoints import classifier_from_file

    return classifier_from_file(file_of(entry), name=entry.name, **entry.options, **options)


def _simsiam(entry: Published, **options: Any) -> nn.Module:
    from cfx_lib.zoo.checkpoints import simsiam_from_file

    return simsiam_from_file(file_of(entry), name=entry.name, **entry.options, **options)


def _lpips(entry: Published, **_: Any) -> nn.Module:
    from cfx_lib.zoo.checkpoints import lpips_from_file

    return lpips_from_file(file_of(entry), **entry.options)


def _vgg19(entry: Published, **_: Any) -> nn.Module:
    from cfx_lib.methods.perceptual import VGG19Features

    return VGG19Features.from_file(file_of(entry), allow_pickle=True).requires_grad_(False)


def _inception(entry: Published, **_: Any) -> nn.Module:
    from cfx_lib.metrics.features import load_inception

    return load_inception(file_of(entry))


def _facenet(entry: Published, **options: Any) -> nn.Module:
    from cfx_lib.zoo.checkpoints import facenet_from_file

    return facenet_from_file(file_of(entry), name=entry.name, **options)


READERS: dict[str, Callable[..., nn.Module]] = {
    "hub": _hub,
    "openai": _openai,
    "robust": _robust,
    "simsiam": _simsiam,
    "lpips": _lpips,
    "vgg19": _vgg19,
    "inception": _inception,
    "facenet": _facenet,
}
"""How a checkpoint of each format is read."""
