"""Cards of the latent diffusion model of avatars: what its autoencoder keeps, what its prompts draw."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cfx_lib.train import latent
from cfx_lib.train.cards import _outputs, _percent, _table, _write, save_grid
from cfx_lib.worlds import avatars, personas

if TYPE_CHECKING:
    from cfx_lib.train.recipes import Job

PSNR_GATE, KEPT_GATE = 28.0, 0.98


# ------------------------------------------------------------------------------------------------ autoencoder


@torch.no_grad()
def reconstruct(vae: nn.Module, x: Tensor, batch: int = 50) -> Tensor:
    """Images (N, 3, H, W) in [-1, 1] through the autoencoder (posterior mean), clipped to [-1, 1]."""
    return torch.cat([vae.decode(vae.encode(p).latent_dist.mean).sample for p in x.split(batch)]).clamp(-1, 1)


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each image, (N,), with a peak-to-peak range of 2."""
    return 10 * torch.log10(4 / (x - y).square().flatten(1).mean(1).clamp_min(1e-12))


def kept(oracle: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """The share of images whose attribute the oracle reads alike in `x` and `y`: each attribute, "mean" and "all" at once."""
    before, after = (_outputs(oracle, z)[:, : len(oracle.attributes)] > 0 for z in (x, y))
    same = before == after
    shares = dict(zip(oracle.attributes, same.double().mean(0).tolist(), strict=True))
    return shares | {"mean": float(same.double().mean()), "all": float(same.all(1).double().mean())}


def codec_figures(vae: nn.Module, n: int = 1000) -> dict:
    """PSNR on test avatars (mean, 5th percentile, a style), attributes kept on avatars and on personas.

    Attributes are read by avatars/oracle and personas/oracle; an oracle that is not there is left out.
    """
    from cfx_lib import zoo

    x, drawn = avatars.load("test", n)
    y = reconstruct(vae, x)
    decibels = psnr(x, y)
    styles = {s: float(decibels[torch.from_numpy(drawn.style == s)].mean()) for s in sorted(set(drawn.style))}
    figures = {"n": len(x), "psnr": float(decibels.mean()), "psnr_5": float(decibels.quantile(0.05))}
    figures |= {"psnr_style": styles, "kept": {}}
    if "avatars/oracle" in zoo.names():
        figures["kept"]["avatars"] = kept(zoo.load("avatars/oracle"), x, y)
    if "personas/oracle" in zoo.names():
        faces = personas.load("test", n)[0]
        figures["kept"]["personas"] = kept(zoo.load("personas/oracle"), faces, reconstruct(vae, faces))
    return figures


def codec_text(figures: dict) -> str:
    """The figures of :func:`codec_figures` as the card has them."""
    rows = [[style, f"{value:.1f} dB"] for style, value in figures["psnr_style"].items()]
    rows.append(["all", f"{figures['psnr']:.1f} dB"])
    text = _table(["style", f"PSNR of {figures['n']} reconstructed test avatars"], rows)
    text += (
        f"\nPSNR is the mean over images on [-1, 1], peak-to-peak 2; 5 % of the images are below {figures['psnr_5']:.1f} dB "
        f"(gate: {PSNR_GATE:g} dB on average).\n"
    )
    for world, shares in figures["kept"].items():
        rest = {k: v for k, v in shares.items() if k not in ("mean", "all")}
        low = sorted(rest, key=rest.get)[:5]
        text += (
            f"\nAttributes that {world}/oracle reads alike before and after: {_percent(shares['mean'])} on average "
            f"(gate: {100 * KEPT_GATE:g} %), all {len(rest)} at once for {_percent(shares['all'])} of the faces; smile: "
            f"{_percent(shares['smile'])}; the least: {', '.join(f'{k} {_percent(rest[k])}' for k in low)}.\n"
        )
    return text


def codec_grid(vae: nn.Module, path: Path, a_style: int = 2) -> None:
    """Test avatars above their reconstructions, two a style, and what was lost (three times enlarged) below."""
    x, drawn = avatars.load("test", 300)
    rows = [torch.from_numpy(drawn.style == s).nonzero().flatten()[:a_style] for s in avatars.STYLES]
    x = x[torch.cat(rows)]
    y = reconstruct(vae, x)
    save_grid(torch.cat([x, y, (3 * (y - x)).clamp(-1, 1)]), path, columns=len(x))


def codec_card(name: str, out: Path, job: Job, curve: list[dict], n: int = 1000) -> None:
    """PSNR and attributes kept on the test avatars, size, a grid of reconstructions."""
    vae = latent.load_codec(out)
    figures = codec_figures(vae, n)
    codec_grid(vae, out / "reconstructions.png")
    figures["parameters"] = sum(p.numel() for p in vae.parameters())
    figures["scaling_factor"] = vae.config.scaling_factor
    text = codec_text(figures) + (
        f"\n{figures['parameters']:,} parameters, scaling factor {figures['scaling_factor']:g}.\n\n"
        "![Test avatars, their reconstructions, three times the difference](reconstructions.png)\n"
    )
    what = "Autoencoder of avatars, 64x64x3 to 16x16x4, a plain `AutoencoderKL`."
    _write(name, out, job, curve, what, text, figures)
