"""Cards of the latent diffusion model of avatars: what its autoencoder keeps, what its prompts draw."""

from __future__ import annotations

from collections.abc import Sequence
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


# ------------------------------------------------------------------------------------------------ samples

ASKED = ("smile", "glasses", "hat", "beard")
AS_PERSONAS = {"glasses": "eyeglasses"}  # the attribute's name in the world of personas
STEPS, GUIDANCE = 30, 3.0


@torch.no_grad()
def text_samples(
    pipeline,  # noqa: ANN001
    prompts: Sequence[str],
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    seed: int = 0,
    batch: int = 50,
) -> Tensor:
    """One image (N, 3, 64, 64) in [-1, 1] a prompt, by the `StableDiffusionPipeline` itself; image k has noise seed + k."""
    pipeline.set_progress_bar_config(disable=True)
    out = []
    for start in range(0, len(prompts), batch):
        texts = list(prompts[start : start + batch])
        noise = [torch.Generator().manual_seed(seed + start + k) for k in range(len(texts))]
        drawn = pipeline(
            texts, num_inference_steps=steps, guidance_scale=guidance, generator=noise, output_type="pt"
        )
        out.append(2 * drawn.images - 1)
    return torch.cat(out)


@torch.no_grad()
def class_samples(
    pipeline,  # noqa: ANN001
    classes: Tensor,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    seed: int = 0,
    batch: int = 100,
) -> Tensor:
    """One image (N, 3, 64, 64) in [-1, 1] a class (N,), by DDIM with classifier-free guidance; image k has noise seed + k.

    `DiTPipeline` does the same, but for its null class, which is written into it as ImageNet's 1000.
    """
    net, vae, scheduler = pipeline.transformer, pipeline.vae, pipeline.scheduler
    null, shape, out = (
        net.config.num_embeds_ada_norm,
        (net.config.in_channels, *[net.config.sample_size] * 2),
        [],
    )
    for start in range(0, len(classes), batch):
        asked = classes[start : start + batch]
        noise = [torch.Generator().manual_seed(seed + start + k) for k in range(len(asked))]
        z = torch.stack([torch.randn(shape, generator=g) for g in noise])
        both = torch.cat([asked, torch.full_like(asked, null)])
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            e = net(torch.cat([z, z]), timestep=t.expand(len(both)), class_labels=both).sample
            with_class, without = e.chunk(2)
            z = scheduler.step(without + guidance * (with_class - without), t, z).prev_sample
        out.append(vae.decode(z / vae.config.scaling_factor).sample.clamp(-1, 1))
    return torch.cat(out)


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of ``hits`` among ``n`` (Wilson 1927)."""
    p, w = hits / n, z * z / n
    middle, half = (p + w / 2) / (1 + w), z * (p * (1 - p) / n + w / n / 4) ** 0.5 / (1 + w)
    return max(0.0, middle - half), min(1.0, middle + half)


def _share(read: Tensor) -> dict[str, float]:
    hits, n = int(read.sum()), len(read)
    low, high = wilson(hits, n)
    return {"n": n, "share": hits / n, "low": low, "high": high}


def guidance_figures(pipeline, n: int = 100, steps: int = STEPS, guidance: float = GUIDANCE) -> dict:  # noqa: ANN001
    """How often what a prompt asks for is read in its sample: {oracle: {attribute: {"asked", "not asked"}}}.

    avatars/oracle reads ``n`` samples an attribute over all styles that can draw it, personas/oracle ``n`` of the style
    personas. "not asked": the same styles, prompted without any attribute. An oracle that is not there is left out.
    """
    from cfx_lib import zoo

    figures: dict = {}
    for name in ("personas/oracle", "avatars/oracle"):
        if name not in zoo.names():
            continue
        oracle, figures[name] = zoo.load(name), {}
        own = name == "personas/oracle"

        def read(attribute: str, prompts: list[str], oracle=oracle, own=own) -> dict:  # noqa: ANN001
            column = oracle.attributes.index(AS_PERSONAS.get(attribute, attribute) if own else attribute)
            return _share(_outputs(oracle, text_samples(pipeline, prompts, steps, guidance))[:, column] > 0)

        for attribute in ASKED:
            styles = ("personas",) if own else avatars.styles_with(attribute)
            chosen = [styles[k % len(styles)] for k in range(n)]
            figures[name][attribute] = {
                "asked": read(attribute, [avatars.prompt(s, **{attribute: True}) for s in chosen]),
                "not asked": read(attribute, [avatars.prompt(s) for s in chosen[: max(1, n // 2)]]),
            }
    return figures


def guidance_text(figures: dict, guidance: float = GUIDANCE, steps: int = STEPS) -> str:
    """The figures of :func:`guidance_figures` as the card has them."""
    rows = [
        [oracle, attribute]
        + [
            f"{_percent(s['share'])} ({_percent(s['low'])} to {_percent(s['high'])}; n = {s['n']})"
            for s in (pair["asked"], pair["not asked"])
        ]
        for oracle, table in figures.items()
        for attribute, pair in table.items()
    ]
    return _table(["read by", "attribute", "prompted for", "prompted without"], rows) + (
        f"\nGuidance scale {guidance:g}, {steps} DDIM steps; in brackets 95 % intervals (Wilson). personas/oracle reads samples of "
        "the style personas, avatars/oracle those of all styles that can draw the attribute.\n"
    )


def labelled_grid(
    x: Tensor, labels: Sequence[str], path: Path, columns: int, scale: int = 2, across: int = 1
) -> None:
    """Write images (N, 3, H, W) in [-1, 1] as one PNG: ``columns`` images a label, under it, ``across`` labels in a row."""
    from PIL import Image, ImageDraw

    pixels = ((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    side, line = scale * x.shape[-1], 16
    height = -(-len(labels) // across) * (side + line)
    sheet = Image.new("RGB", (across * columns * side, height), "white")
    write = ImageDraw.Draw(sheet)
    for k, picture in enumerate(pixels):
        row, column = divmod(k, across * columns)
        image = Image.fromarray(picture).resize((side, side), Image.NEAREST)
        sheet.paste(image, (column * side, row * (side + line) + line))
    for k, label in enumerate(labels):
        row, column = divmod(k, across)
        write.text((column * columns * side + 3, row * (side + line) + 2), label, fill="black")
    sheet.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def text_card(
    name: str, out: Path, job: Job, curve: list[dict], n: int = 100, steps: int = STEPS, faces: int = 1000
) -> None:
    """Reconstruction of the autoencoder, obedience to prompts, size, grids of samples."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(out, torch_dtype=torch.float32)
    codec = codec_figures(pipeline.vae, faces)
    obeyed = guidance_figures(pipeline, n, steps)
    parts = {k: getattr(pipeline, k) for k in ("vae", "unet", "text_encoder")}
    counts = {k: sum(p.numel() for p in part.parameters()) for k, part in parts.items()}
    prompts = [avatars.prompt(style, smile=smile) for style in avatars.STYLES for smile in (True, False)]
    prompts += [avatars.prompt("personas", **{a: True}) for a in ("glasses", "hat", "beard", "gray_hair")] + [
        ""
    ]
    x = text_samples(pipeline, [p for p in prompts for _ in range(8)], steps, seed=1000)
    labelled_grid(x, [p or "(the empty prompt)" for p in prompts], out / "samples.png", columns=8)
    codec_grid(pipeline.vae, out / "reconstructions.png")
    text = "### Prompts\n\n" + guidance_text(obeyed, steps=steps)
    text += f"\n![8 samples a prompt, {steps} DDIM steps](samples.png)\n\n### Autoencoder\n\n" + codec_text(
        codec
    )
    text += (
        "\n![Test avatars, their reconstructions, three times the difference](reconstructions.png)\n\n### Size\n\n"
        + ", ".join(f"{k} {v:,}" for k, v in counts.items())
        + " parameters. Token embeddings that never occurred in training are zero: "
        f"{int((pipeline.text_encoder.get_input_embeddings().weight == 0).all(1).sum())} of {len(pipeline.tokenizer)}.\n"
    )
    what = (
        "Text-to-image latent diffusion of avatars, 64x64 RGB: a complete `StableDiffusionPipeline` (epsilon prediction, "
        "trained from scratch with its text encoder)."
    )
    _write(name, out, job, curve, what, text, {"codec": codec, "prompts": obeyed, "parameters": counts})


def class_card(name: str, out: Path, job: Job, curve: list[dict], n: int = 320, steps: int = STEPS) -> None:
    """How often a class's mood and glasses are read in its samples, size, a grid of all classes."""
    from diffusers import DiTPipeline

    pipeline = DiTPipeline.from_pretrained(out, torch_dtype=torch.float32)
    figures = class_figures(pipeline, n, steps)
    figures["parameters"] = sum(p.numel() for p in pipeline.transformer.parameters())
    rows = [
        [
            oracle,
            what,
            f"{_percent(s['share'])} ({_percent(s['low'])} to {_percent(s['high'])}; n = {s['n']})",
        ]
        for oracle, table in figures["classes"].items()
        for what, s in table.items()
    ]
    x = class_samples(pipeline, torch.arange(len(avatars.CLASSES)).repeat_interleave(4), steps, seed=1000)
    labelled_grid(x, avatars.CLASSES, out / "samples.png", columns=4, across=2)
    text = _table(["read by", "what", "as in the class"], rows) + (
        f"\nGuidance scale {GUIDANCE:g}, {steps} DDIM steps; in brackets 95 % intervals (Wilson). personas/oracle reads the "
        "samples of the style personas, avatars/oracle those of all styles.\n\n"
        f"{figures['parameters']:,} parameters beside the autoencoder, which is that of avatars/sd.\n\n"
        f"![4 samples a class, {steps} DDIM steps](samples.png)\n"
    )
    what = (
        f"Class-conditional latent diffusion transformer of avatars: a `DiTPipeline` with {len(avatars.CLASSES)} classes; class "
        f"{len(avatars.CLASSES)} stands for none. The classes are style x smiling x glasses and not the ten of Fashion-MNIST: so "
        "LDCE-cls explains the faces whose true counterfactuals are known, beside LDCE-txt on the same autoencoder."
    )
    _write(name, out, job, curve, what, text, figures)


def class_figures(pipeline, n: int = 320, steps: int = STEPS, guidance: float = GUIDANCE) -> dict:  # noqa: ANN001
    """{"classes": {oracle: {"smile", "glasses": the share of ``n`` samples in which they are as in the class}}}."""
    from cfx_lib import zoo

    figures: dict = {"classes": {}}
    for name in ("personas/oracle", "avatars/oracle"):
        if name not in zoo.names():
            continue
        oracle, own = zoo.load(name), name == "personas/oracle"
        classes = torch.arange(n) % (4 if own else len(avatars.CLASSES))
        classes = classes + (4 * avatars.STYLES.index("personas") if own else 0)
        read = _outputs(oracle, class_samples(pipeline, classes, steps, guidance)) > 0
        asked = {"smile": classes % 4 // 2 == 1, "glasses": classes % 2 == 1}
        columns = {a: oracle.attributes.index(AS_PERSONAS.get(a, a) if own else a) for a in asked}
        figures["classes"][name] = {a: _share(read[:, columns[a]] == asked[a]) for a in asked}
    return figures


# ------------------------------------------------------------------------------------------------ oracle


def oracle_card(name: str, out: Path, job: Job, curve: list[dict], n: int = 1000) -> None:
    """Accuracy an attribute on the test avatars, clean and under noise; accuracy of smile and glasses a style."""
    from cfx_lib import zoo

    model = zoo.load(str(out))
    x, drawn = avatars.load("test", n)
    truth = avatars.attributes(drawn)
    noise = 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    right, noisy = ((_outputs(model, z) > 0) == truth for z in (x, x + noise))
    clean, rough = right.double().mean(0).tolist(), noisy.double().mean(0).tolist()
    shares = truth.double().mean(0).tolist()
    rows = [
        [a, _percent(s), _percent(c), _percent(r)]
        for a, s, c, r in zip(model.attributes, shares, clean, rough, strict=True)
    ]
    means = [sum(values) / len(values) for values in (clean, rough)]
    rows.append(["mean", "", *map(_percent, means)])
    text = _table(["attribute", "have it", f"accuracy, {len(x):,} test avatars", "with noise of 0.5"], rows)
    told = ("smile", "glasses", "beard", "hat")
    columns = [model.attributes.index(a) for a in told]
    styles = {
        s: right[torch.from_numpy(drawn.style == s)][:, columns].double().mean(0).tolist()
        for s in avatars.STYLES
        if (drawn.style == s).any()
    }
    text += "\n" + _table(["style", *told], [[s, *map(_percent, values)] for s, values in styles.items()])
    figures = {"clean": dict(zip(model.attributes, clean, strict=True)), "mean": means[0], "noisy": means[1]}
    figures |= {"styles": {s: dict(zip(told, values, strict=True)) for s, values in styles.items()}}
    what = f"Attribute classifier ({job.facts['arch'][0]}) on avatars of all styles, the judge of what a prompt draws."
    _write(name, out, job, curve, what, text, figures)
