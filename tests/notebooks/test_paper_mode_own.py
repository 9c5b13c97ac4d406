"""Notebook 10 in `paper` mode, cell by cell, on tiny random checkpoints of the published formats, from disk."""

from pathlib import Path

import latents as tiny
import numpy as np
import paper_runs
import pytest
import timm
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image
from timm.models import save_for_hf

from cfx_lib.methods.prompts import class_prompts
from cfx_lib.zoo.classifiers import imagenet_names

SOLUTION = Path(__file__).parents[2] / "notebooks" / "solutions" / "10_own_classifier.ipynb"
SIZE = 32
SMALLER = """
TRAIN, CHECK, VAL, TEST, TRIED, FEW, STEPS = 16, 16, 2, 2, 4, 2, 3
COUNTED = 3
PUBLISHED = {
    "ACE": {"steps": 10, "start": 2, "iterations": 2},
    "DVCE": {"steps": 10, "start": 3},
    "LDCE": {"steps": 10, "start": 2},
    "DiME": {"steps": 10, "start": 3, "lambda_c": 1.0, "inner": "one-step"},
    "training": {"architecture": "test_resnet", "steps": 2, "batch": 2, "precision": "fp32"},
}
"""


def denoiser(folder):
    unet = UNet2DModel(
        SIZE, 3, 3, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=1000)).save_pretrained(folder)


def photographs(folder, names):
    folder.mkdir(parents=True)
    for k, name in enumerate(names):
        pixels = np.random.default_rng(k).integers(0, 256, (SIZE, SIZE + 3, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)


def celeba_hq(root):
    """Eight faces in the layout of CelebAMask-HQ, four of them in the test split."""
    names = [f"{k}.jpg" for k in range(8)]
    photographs(root / "CelebA-HQ-img", names)
    lines = [f"{name} {1 if k % 2 else -1}" for k, name in enumerate(names)]
    (root / "CelebAMask-HQ-attribute-anno.txt").write_text("\n".join(["8", "Smiling", *lines]) + "\n")
    numbers = [1 + k if k < 4 else 190_000 + k for k in range(8)]
    rows = [f"{k} {n - 1} {n:06}.jpg" for k, n in enumerate(numbers)]
    (root / "CelebA-HQ-to-CelebA-mapping.txt").write_text("\n".join(["idx orig_idx orig_file", *rows]) + "\n")


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    words = {w for text in class_prompts("imagenet", imagenet_names(1000)).values() for w in text.lower().replace(".", " .").split()}  # fmt: skip
    letters = sorted({w for w in words if w.isascii() and w.isalpha()} | {"a", "photo", "of", "."})
    monkeypatch.setattr(tiny, "WORDS", tuple(letters))
    monkeypatch.setattr(tiny, "LENGTH", 77)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        denoiser(tmp_path / "ddpm")
        net = timm.create_model("test_resnet", num_classes=1000)
        save_for_hf(net, tmp_path / "net", safe_serialization=True)
    tiny.stable_diffusion(levels=3).save_pretrained(tmp_path / "sd")
    photographs(tmp_path / "photographs", ["a.png", "b.png"])
    celeba_hq(tmp_path / "faces")
    for name, value in {
        "IMAGES": "photographs", "CLASSIFIER": "net", "DENOISER": "ddpm", "ROBUST": "net", "SD": "sd", "HQ": "faces",
        "HQ_DENOISER": "ddpm",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"CFX_{name}", str(tmp_path / value))
    monkeypatch.delenv("CFX_HQ_CLASSIFIER", raising=False)  # one is trained on the faces
    monkeypatch.setenv("CFX_DEVICE", "cpu")
    monkeypatch.setenv("CFX_SIZE", str(SIZE))


def test_every_cell_runs_on_checkpoints_from_disk(checkpoints, monkeypatch, tmp_path):
    monkeypatch.setenv("CFX_ROBUST", str(tmp_path / "not there"))
    said = paper_runs.run(SOLUTION, "TRAIN, CHECK, VAL, TEST, TRIED, FEW", SMALLER)
    for method in ("ACE", "LDCE", "DiME"):
        assert f"| {method} |" in said
    assert (
        "**ImageNet, DVCE**" in said and "there is no model" in said
    )  # what is missing is said, the rest went on
