"""Notebook 07 in `paper` mode, cell by cell, on a tiny HiT in the authors' format, a tiny ViT and photographs, from disk."""

from pathlib import Path

import numpy as np
import paper_runs
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.models import save_for_hf

SOLUTION = Path(__file__).parents[2] / "notebooks" / "solutions" / "07_hit.ipynb"
SIZE, DIM, LAYERS = 32, 64, 3  # patches of 8: a grid of 4x4
SMALLER = """
SHOWN, MANY, CURVES, FACES, SECONDS, ASKED = 2, 4, 2, 4, 1, 2
"""


def released() -> dict[str, torch.Tensor]:
    """A random HiT in the authors' parameter names, with the MLP of the last layer that nothing reads."""
    draw = torch.Generator().manual_seed(0)
    shapes = {
        "class_token": (1, 1, DIM), "encoder.pos_embedding": (1, 17, DIM), "conv_proj.weight": (DIM, 3, 8, 8),
        "conv_proj.bias": (DIM,), "encoder.ln.weight": (DIM,), "encoder.ln.bias": (DIM,), "heads.head.weight": (1000, DIM),
        "heads.head.bias": (1000,),
    }  # fmt: skip
    for layer in range(LAYERS):
        stem = f"encoder.layers.encoder_layer_{layer}"
        shapes |= {f"{stem}.ln_{k}.{kind}": (DIM,) for k in (1, 2) for kind in ("weight", "bias")}
        shapes |= {
            f"{stem}.self_attention.in_proj_weight": (3 * DIM, DIM), f"{stem}.self_attention.in_proj_bias": (3 * DIM,),
            f"{stem}.self_attention.out_proj.weight": (DIM, DIM), f"{stem}.self_attention.out_proj.bias": (DIM,),
            f"{stem}.mlp.0.weight": (2 * DIM, DIM), f"{stem}.mlp.0.bias": (2 * DIM,), f"{stem}.mlp.3.weight": (DIM, 2 * DIM),
            f"{stem}.mlp.3.bias": (DIM,),
        }  # fmt: skip
    return {name: torch.randn(shape, generator=draw) * 0.2 for name, shape in shapes.items()}


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    save_file(released(), tmp_path / "hit.safetensors")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        size = {"img_size": SIZE, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
        vit = timm.create_model("vit_tiny_patch16_224", **size)
    save_for_hf(vit, tmp_path / "vit", model_args=size, safe_serialization=True)
    (tmp_path / "photographs").mkdir()
    for k in range(4):
        pixels = np.random.default_rng(k).integers(0, 256, (SIZE + 3, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photographs" / f"{k}.png")
    for name, value in {"HIT": "hit.safetensors", "VIT": "vit", "IMAGES": "photographs"}.items():
        monkeypatch.setenv(f"CFX_{name}", str(tmp_path / value))
    monkeypatch.setenv("CFX_DEVICE", "cpu")


def test_every_cell_runs_on_checkpoints_from_disk(checkpoints):
    said = paper_runs.run(SOLUTION, "SHOWN, MANY, CURVES", SMALLER)
    assert "4 x 4 patches of 8 x 8 pixels, 3 layers" in said  # the checkpoint's network
    assert "Your terms and the library's, 48,000 a picture" in said
