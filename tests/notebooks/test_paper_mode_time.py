"""Notebook 06 in `paper` mode, cell by cell, on a tiny random Stable Diffusion, a tiny timm network and photographs, from disk."""

from pathlib import Path

import latents as tiny
import numpy as np
import paper_runs
import pytest
import timm
import torch
from PIL import Image
from timm.models import save_for_hf

from cfx_lib import zoo
from cfx_lib.worlds import folders

SOLUTION = Path(__file__).parents[2] / "notebooks" / "solutions" / "06_time.ipynb"
SMALLER = """
N, SOME, FEW, SLOW, ITERATIONS, LEARN, BATCH = 2, 1, 1, 1, 3, 128, 4
PHOTOGRAPHS, READ, AT_ONCE = 4, 16, 2
TIME.PRESETS["paper/celebahq/smile"] |= {"attempts": ((25, 3.0), (30, 4.0))}
Distillation.PRESETS["paper/celebahq"] |= {"iterations": 3, "batch": 4}
"""


def photographs(folder):
    """Sixteen speckled images of many brightnesses."""
    folder.mkdir()
    for k in range(16):
        pixels = np.random.default_rng(k).integers(0, 60, (20, 18, 3)) + 12 * k
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{k:02}.png")


def classifier(folder, images):
    """A tiny ResNet of two classes, random but for its bias: it gives half of the images each label."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model("test_resnet", num_classes=2)
    save_for_hf(network, folder, safe_serialization=True)
    gap = zoo.load(folder)(folders.load(images, size=16, progress=False)[0]).diff(dim=1)
    with torch.no_grad():
        network.get_classifier().bias[1] -= gap.quantile(0.5)
    save_for_hf(network, folder, safe_serialization=True)


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "WORDS", ("a", "picture", "image", "with"))
    monkeypatch.setattr(tiny, "LENGTH", 16)
    tiny.stable_diffusion().save_pretrained(tmp_path / "sd")
    photographs(tmp_path / "photographs")
    classifier(tmp_path / "net", tmp_path / "photographs")
    places = {"SD": "sd", "CLASSIFIER": "net", "JUDGE": "net", "IMAGES": "photographs", "WORDS": "words"}
    for name, value in places.items():
        monkeypatch.setenv(f"CFX_{name}", str(tmp_path / value))
    monkeypatch.setenv("CFX_DEVICE", "cpu")


def test_every_cell_runs_on_checkpoints_from_disk(checkpoints, tmp_path):
    said = paper_runs.run(SOLUTION, "N, SOME, FEW, SLOW", SMALLER)
    assert (
        "3 iterations a word on batches of 4, from 12 photographs" in said
    )  # half of the photographs of each class
    assert "30.1%" in said and "74.0%" in said and "97.1%" in said  # Tables 5.3 and 5.2, beside this run
    assert (
        "EDICT recovers photographs: the latents come back to within 1e-6 (w = 3) (Sect. 5.3.3): **reproduced**"
        in said
    )
    assert "The autoencoder alone, with nothing edited, flips" in said
    assert "Negative guidance flips more photographs" in said
    assert (tmp_path / "words" / "class-1.safetensors").is_file()  # kept for the next time
