"""`cfx explain` on published checkpoints by their short names, with tiny ones of the same format in the cache."""

import json
from dataclasses import replace

import hubs
import numpy as np
import pytest
import timm
import torch
from latents import stable_diffusion
from models import fixture
from PIL import Image

from cfx_lib.cli import main
from cfx_lib.types import CFResult
from cfx_lib.zoo import manifest


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory):
    """A folder as timm publishes a classifier of ImageNet, and one with a robust checkpoint."""
    from timm.models import save_for_hf

    folder = tmp_path_factory.mktemp("published")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_for_hf(
            timm.create_model("resnet10t", num_classes=1000), folder / "timm", safe_serialization=True
        )
        robust = timm.create_model("resnet10t", num_classes=1000).state_dict()
    (folder / "robust").mkdir()
    weights = {f"module.model.{key}": value for key, value in robust.items()}
    torch.save({"model": weights}, folder / "robust" / "resnet50_l2_eps3.ckpt")
    return folder


@pytest.fixture
def cat(tmp_path, monkeypatch, classifiers):
    """A picture, and the caches filled: the path of the picture."""
    hub = hubs.offline(tmp_path, monkeypatch)
    hubs.cached(hub, "resnet50.tv_in1k", classifiers / "timm")
    hubs.cached(hub, "resnet50-robust-l2-3", classifiers / "robust")
    stable_diffusion().save_pretrained(tmp_path / "sd")
    hubs.cached(hub, "sd-1.4", tmp_path / "sd")
    weights, about = fixture("01_unet_weights")
    checkpoints = tmp_path / "cache" / "checkpoints"
    checkpoints.mkdir(parents=True)
    adm = manifest.entry("adm-imagenet-256")
    torch.save({k.removeprefix("unet."): v.half() for k, v in weights.items()}, checkpoints / adm.file)
    changes = {
        "adm-imagenet-256": {"sha256": None, "options": about["config"]},
        "resnet50-robust-l2-3": {"options": {"architecture": "resnet10t", "num_classes": 1000}},
    }
    entries = tuple(replace(e, **changes.get(e.name, {})) for e in manifest._ENTRIES)
    monkeypatch.setattr(manifest, "_ENTRIES", entries)
    pixels = np.random.default_rng(0).integers(0, 255, (40, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "cat.png")
    return tmp_path / "cat.png"


def explained(cat, *arguments):
    out = cat.parent / "result"
    words = [
        "--classifier",
        "resnet50.tv_in1k",
        "--image",
        str(cat),
        "--target",
        "tiger cat",
        "--out",
        str(out),
    ]
    assert main(["explain", *words, *arguments]) == 0
    return json.loads((out / "explanation.json").read_text()), CFResult.load(out)


def test_dvce_through_the_cone_of_a_robust_classifier(cat):
    robust = ("--robust", "resnet50-robust-l2-3")
    facts, result = explained(cat, "--method", "dvce", *robust, "--set", "steps=6", "--set", "start=3")
    assert facts["denoiser"] == "adm-imagenet-256" and facts["preset"] == "paper/imagenet"
    assert facts["images"][0]["target"] == {"class": 282, "name": "tiger cat"}
    assert facts["images"][0]["size_given"] == [30, 40] and result.x.shape == (1, 3, 16, 16)
    assert torch.isfinite(result.extra["angles"]).any()  # there is a cone


def test_ldce_by_text(cat):
    prompt, short = (
        ("--prompt", "tiger cat=a photo of a sad person"),
        ("--set", "steps=4", "--set", "start=2"),
    )
    facts, result = explained(cat, "--method", "ldce", *prompt, *short, "--dtype", "bf16")
    assert facts["denoiser"] == "sd-1.4" and facts["preset"] == "paper/imagenet" and facts["dtype"] == "bf16"
    assert result.extra["conditions"] == ["a photo of a sad person"] and result.x.shape == (1, 3, 16, 16)


def test_what_is_not_in_the_cache_is_said(cat, capsys):
    words = [
        "--classifier",
        "resnet50.tv_in1k",
        "--image",
        str(cat),
        "--target",
        "282",
        "--out",
        str(cat.parent / "o"),
    ]
    assert main(["explain", "--method", "ldce", "--denoiser", "mini-sd", *words]) == 2
    assert "hf download lambda/miniSD-diffusers --revision 26ed8a9" in capsys.readouterr().err
