"""A small latent diffusion model of avatars: an autoencoder, a text-to-image UNet and a class-conditional transformer.

Each is stored as plain diffusers and transformers modules, fp16 safetensors, in the folders of `StableDiffusionPipeline`
and `DiTPipeline`. Source: Rombach et al. 2022, "High-resolution image synthesis with latent diffusion models"; Peebles and
Xie 2023, "Scalable diffusion models with transformers".
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from cfx_lib.train import classifier, tokens
from cfx_lib.train.loop import BatchFn, LossFn
from cfx_lib.worlds import avatars, personas

# ------------------------------------------------------------------------------------------------ autoencoder

VAE = {  # 64x64x3 -> 16x16x4; narrow at full resolution, where the time goes
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (16, 32, 80),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 8,
    "sample_size": 64,
    "mid_block_add_attention": False,
    "force_upcast": False,
}


class Codec(nn.Module):
    """An `AutoencoderKL` for training: images and noise -> reconstructions, and the posterior's mean and log variance."""

    def __init__(self, **config: object) -> None:
        super().__init__()
        from diffusers import AutoencoderKL

        self.vae = AutoencoderKL(**(VAE | config))

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        posterior = self.vae.encode(x).latent_dist
        mean, log_variance = posterior.mean.float(), posterior.logvar.float()
        z = mean + (0.5 * log_variance).exp() * noise
        return self.vae.decode(z).sample, mean, log_variance


def images(uint8) -> BatchFn:  # noqa: ANN001
    """Draw (images, posterior noise) batches: (N, 3, 64, 64) in [-1, 1] and standard normal (N, 4, 16, 16)."""
    channels, factor = VAE["latent_channels"], 2 ** (len(VAE["block_out_channels"]) - 1)

    def draw(generator: torch.Generator, size: int) -> tuple[Tensor, ...]:
        rows = torch.randint(len(uint8), (size,), generator=generator)
        x = personas.to_tensor(uint8[rows.numpy()])
        side = x.shape[-1] // factor
        return x, torch.randn(size, channels, side, side, generator=generator)

    return draw


def codec_loss(square: float = 4.0, edges: float = 0.5, kl: float = 1e-6) -> LossFn:
    """L1 + square * MSE + edges * L1 of the differences of neighbouring pixels + kl * KL(posterior || N(0, 1)).

    The reconstruction terms are means over pixels, the KL is a sum over an image's latents. The L1 keeps flat colours clean,
    the square is the PSNR's, the differences keep lines a pixel wide (mouths, wrinkles).
    """

    def loss(model: nn.Module, generator: torch.Generator, x: Tensor, noise: Tensor) -> Tensor:
        out, mean, log_variance = model(x, noise)
        error = out.float() - x
        steps = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1).mean()
        return error.abs().mean() + square * error.square().mean() + edges * steps + kl * divergence

    return loss


@torch.no_grad()
def standardise(vae: nn.Module, x: Tensor) -> None:
    """Fold each latent channel's mean and standard deviation over images `x` into the two 1x1 convolutions, in place.

    The autoencoder's function stays the same; its latents then have mean 0 and deviation 1 in every channel, so that the
    noise of the last timestep hides them all alike. `scaling_factor` becomes 1 / the deviation over all channels.
    """
    mean, log_variance = encode(vae, x)
    m = mean.mean((0, 2, 3))
    s = (mean.var((0, 2, 3), correction=0) + log_variance.exp().mean((0, 2, 3))).sqrt()
    channels, quant, post = len(m), vae.quant_conv, vae.post_quant_conv
    quant.weight[:channels] /= s.view(-1, 1, 1, 1)
    quant.bias[:channels] = (quant.bias[:channels] - m) / s
    quant.bias[channels:] -= 2 * s.log()
    post.bias += (post.weight[:, :, 0, 0] * m).sum(1)
    post.weight *= s.view(1, -1, 1, 1)
    mean, log_variance = encode(vae, x)
    scale = 1 / float((mean.var(correction=0) + log_variance.exp().mean()).sqrt())
    vae.register_to_config(scaling_factor=round(scale, 6))


@torch.no_grad()
def encode(vae: nn.Module, x: Tensor, batch: int = 100) -> tuple[Tensor, Tensor]:
    """Mean and log variance of the posterior, unscaled, of images in [-1, 1]; each (N, 4, 16, 16)."""
    parts = [vae.encode(part).latent_dist for part in x.split(batch)]
    return torch.cat([p.mean for p in parts]), torch.cat([p.logvar for p in parts])


def store_half(module: nn.Module, folder: Path) -> None:
    """Save a diffusers or transformers module as fp16 safetensors; the live module is not touched."""
    copy.deepcopy(module).half().save_pretrained(folder, safe_serialization=True)


def store_codec(model: Codec, folder: Path, rows: int = 4000) -> None:
    """Standardise the latents over the first `rows` training avatars and save the autoencoder."""
    vae = copy.deepcopy(model.vae).float().eval()
    standardise(vae, personas.to_tensor(avatars.load_uint8("train", rows)[0]))
    store_half(vae, folder)


def codec_folder() -> Path:
    """Where training keeps the autoencoder of avatars between its stages."""
    return personas.cache_dir().parent / "avatars" / "autoencoder"


def load_codec(folder: Path | None = None) -> nn.Module:
    """The trained autoencoder as fp32, frozen: from the cache, else the shipped one. Raises FileNotFoundError."""
    from diffusers import AutoencoderKL

    from cfx_lib.zoo.checksums import data_dir

    places = (
        [codec_folder(), data_dir() / "weights" / "avatars" / "sd" / "vae"] if folder is None else [folder]
    )
    for place in places:
        if (place / "config.json").exists():
            vae = AutoencoderKL.from_pretrained(place, torch_dtype=torch.float32)
            vae.register_to_config(
                _name_or_path="avatars/autoencoder"
            )  # a folder of this machine is nobody's business
            return vae.eval().requires_grad_(False)
    raise FileNotFoundError(
        f"no autoencoder of avatars in {' or '.join(map(str, places))}. "
        "Train it first: python -m cfx_lib.train avatars/autoencoder"
    )


# ------------------------------------------------------------------------------------------------ latents


@torch.no_grad()
def latents(vae: nn.Module, split: str = "train", n: int | None = None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the posterior of a split's avatars, scaled, float16 (N, 4, 16, 16); kept in the cache.

    The file's name has a hash of the autoencoder's weights, so latents of another one are never read.
    """
    from safetensors.torch import load_file, save_file
    from tqdm.auto import tqdm

    weights = b"".join(p.half().numpy().tobytes() for p in vae.state_dict().values())
    key = hashlib.sha256(weights).hexdigest()[:12]
    uint8, _ = avatars.load_uint8(split, n)
    path = personas.cache_dir().parent / "avatars" / f"latents-{split}-{len(uint8)}-{key}.safetensors"
    if not path.exists():
        parts = []
        for start in tqdm(range(0, len(uint8), 200), desc="latents", leave=False):
            mean, log_variance = encode(vae, personas.to_tensor(uint8[start : start + 200]))
            parts.append((mean, (0.5 * log_variance).exp()))
        mean, deviation = (
            (vae.config.scaling_factor * torch.cat(p)).half().contiguous() for p in zip(*parts, strict=True)
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        save_file({"mean": mean, "deviation": deviation}, partial)
        partial.replace(path)
    stored = load_file(path)
    return stored["mean"], stored["deviation"]


def text_batches(mean: Tensor, deviation: Tensor, ids: Tensor, empty: Tensor, drop: float = 0.12) -> BatchFn:
    """Draw (latents, token ids) batches. ``ids`` (P, N, L): P phrasings of each image's caption, one is drawn each time.

    A share ``drop`` of the captions is the ``empty`` one (L,), for classifier-free guidance (Ho and Salimans 2022). Latents
    are drawn from the posterior, as in Stable Diffusion: the decoder has learned from such.
    """

    def draw(generator: torch.Generator, size: int) -> tuple[Tensor, ...]:
        rows = torch.randint(mean.shape[0], (size,), generator=generator)
        phrasing = torch.randint(len(ids), (size,), generator=generator)
        dropped = torch.rand(size, generator=generator) < drop
        z = _drawn(mean[rows], deviation[rows], generator)
        return z, torch.where(dropped[:, None], empty, ids[phrasing, rows].long())

    return draw


def class_batches(mean: Tensor, deviation: Tensor, classes: Tensor, null: int, drop: float = 0.12) -> BatchFn:
    """Draw (latents, classes) batches; a share ``drop`` of the classes (N,) becomes ``null``. As :func:`text_batches`."""

    def draw(generator: torch.Generator, size: int) -> tuple[Tensor, ...]:
        rows = torch.randint(mean.shape[0], (size,), generator=generator)
        dropped = torch.rand(size, generator=generator) < drop
        z = _drawn(mean[rows], deviation[rows], generator)
        return z, classes[rows].masked_fill(dropped, null)

    return draw


def _drawn(mean: Tensor, deviation: Tensor, generator: torch.Generator) -> Tensor:
    return mean.float() + deviation.float() * torch.randn(mean.shape, generator=generator)


def phrasings(described: avatars.Avatars, tokenizer, count: int = 8) -> Tensor:  # noqa: ANN001
    """Token ids (count, N, L) int16 of ``count`` captions an avatar."""
    return torch.stack(
        [tokens.token_ids(tokenizer, avatars.captions(described, seed)).short() for seed in range(count)]
    )


# ------------------------------------------------------------------------------------------------ denoisers

UNET = {  # cross attention at 16x16, 8x8 and, in the middle, 4x4
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 1,
    "block_out_channels": (48, 64, 80),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 96,
    "attention_head_dim": (2, 2, 2),  # diffusers means the number of heads
    "norm_num_groups": 16,
}
TEXT = {
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": tokens.LENGTH,
}
DIT = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "patch_size": 2,
    "num_attention_heads": 4,
    "attention_head_dim": 20,
    "num_layers": 5,
}


def make_scheduler():  # noqa: ANN201
    """The noise schedule of Stable Diffusion: scaled linear betas, epsilon prediction, DDIM without clipping."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


class TextToImage(nn.Module):
    """A UNet and the text encoder that is trained with it: (z_t, t, token ids) -> the noise, (N, 4, 16, 16).

    ``seen`` marks the tokens that have occurred in training. Attention is computed with plain matrix products, the fastest
    way to train it on a CPU.
    """

    def __init__(self, tokenizer, unet: dict | None = None, text: dict | None = None) -> None:  # noqa: ANN001
        super().__init__()
        from diffusers import UNet2DConditionModel
        from diffusers.models.attention_processor import AttnProcessor
        from transformers import CLIPTextConfig, CLIPTextModel

        begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        special = {"bos_token_id": begin, "eos_token_id": end, "pad_token_id": tokenizer.pad_token_id}
        config = CLIPTextConfig(vocab_size=len(tokenizer), **special, **(TEXT | (text or {})))
        self.text, self.unet = CLIPTextModel(config), UNet2DConditionModel(**(UNET | (unet or {})))
        self.unet.set_attn_processor(AttnProcessor())
        self.register_buffer("seen", torch.zeros(len(tokenizer), dtype=torch.bool))

    def forward(self, z: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        if self.training:
            self.seen[ids.flatten()] = True
        return self.unet(z, t, self.text(ids).last_hidden_state).sample


class ClassToImage(nn.Module):
    """A diffusion transformer: (z_t, t, classes) -> the noise, (N, 4, 16, 16). Class K, of K, stands for none.

    Begins with every block as the identity (adaLN-Zero, Peebles and Xie 2023, section 3.2). Classes are dropped by
    :func:`class_batches`, all blocks alike, not by the network.
    """

    def __init__(self, classes: int, **config: object) -> None:
        super().__init__()
        from diffusers import DiTTransformer2DModel
        from diffusers.models.attention_processor import AttnProcessor

        self.transformer = DiTTransformer2DModel(**(DIT | {"num_embeds_ada_norm": classes} | config))
        zeroed = [self.transformer.proj_out_1, self.transformer.proj_out_2]
        for block in self.transformer.transformer_blocks:
            block.attn1.set_processor(AttnProcessor())
            block.norm1.emb.class_embedder.dropout_prob = 0.0
            nn.init.normal_(block.norm1.emb.class_embedder.embedding_table.weight, std=0.02)
            zeroed.append(block.norm1.linear)
        for layer in zeroed:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, z: Tensor, t: Tensor, classes: Tensor) -> Tensor:
        return self.transformer(z, timestep=t, class_labels=classes).sample


def noise_loss(alpha_bar: Tensor, most: float = 5.0) -> LossFn:
    """Weighted mean square of eps - eps_theta(z_t, t, c), t uniform and stratified over the batch.

    The simple loss (Ho et al. 2020, Eq. 14) is the velocity loss with weight alpha_bar, so a short training on it learns
    large noise levels, and with them an image's colours, last (:func:`cfx_lib.train.ddpm.velocity_loss`). The weight
    min(1 / alpha_bar, most), divided by its mean, makes up for that where the signal is not too weak; a limit of this kind
    is Hang et al. 2023, "Efficient diffusion training via min-SNR weighting strategy".
    """
    weight = (1 / alpha_bar).clamp(max=most)
    weight = weight / weight.mean()

    def loss(model: nn.Module, generator: torch.Generator, z: Tensor, condition: Tensor) -> Tensor:
        n = len(z)
        u = (torch.rand(n, generator=generator) + torch.arange(n)) / n
        t = (u * len(alpha_bar)).long().clamp(max=len(alpha_bar) - 1)  # float32 may round the sum up to n
        noise = torch.randn(z.shape, generator=generator).to(z)
        a = alpha_bar[t].view(-1, 1, 1, 1).to(z)
        out = model(a.sqrt() * z + (1 - a).sqrt() * noise, t.to(z.device), condition)
        return (weight[t].to(z) * (out.float() - noise).square().flatten(1).mean(1)).mean()

    return loss


# ------------------------------------------------------------------------------------------------ storing


def store_text_to_image(model: TextToImage, tokenizer, vae: nn.Module, folder: Path) -> None:  # noqa: ANN001
    """Save a `StableDiffusionPipeline` folder, weights in fp16; embeddings of tokens that never occurred become zero."""
    from diffusers import StableDiffusionPipeline

    unet, text, vae = (copy.deepcopy(m).half() for m in (model.unet, model.text, vae))
    text.get_input_embeddings().weight.data[~model.seen] = 0
    parts = {"unet": unet, "text_encoder": text, "vae": vae, "tokenizer": tokenizer}
    unused = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    StableDiffusionPipeline(**parts, scheduler=make_scheduler(), **unused).save_pretrained(
        folder, safe_serialization=True
    )
    tokens.save_tokenizer(tokenizer, folder / "tokenizer")
    # transformers loads in the type that the configuration names, diffusers in float32: name that
    _edit(folder / "text_encoder" / "config.json", dtype="float32")


def store_class_to_image(model: ClassToImage, classes: Sequence[str], vae: nn.Module, folder: Path) -> None:
    """Save a `DiTPipeline` folder, weights in fp16. Its labels are the classes without their commas."""
    from diffusers import DiTPipeline

    transformer, vae = (copy.deepcopy(m).half() for m in (model.transformer, vae))
    labels = {k: name.replace(",", "") for k, name in enumerate(classes)}
    DiTPipeline(transformer, vae, make_scheduler(), id2label=labels).save_pretrained(
        folder, safe_serialization=True
    )
    _edit(folder / "model_index.json", id2label=labels)


def _edit(path: Path, **changes: object) -> None:
    """Set entries of a JSON file."""
    said = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


# ------------------------------------------------------------------------------------------------ oracle


def labelled(uint8, labels: Tensor) -> BatchFn:  # noqa: ANN001
    """Draw (images, labels (N, A) float, (N, 0)) batches with noise, shifts and colour changes, for `attribute_loss`."""

    def draw(generator: torch.Generator, size: int) -> tuple[Tensor, ...]:
        rows = torch.randint(len(uint8), (size,), generator=generator)
        x = classifier.augment(personas.to_tensor(uint8[rows.numpy()]), generator)
        y = labels[rows].float()
        return x.contiguous(memory_format=torch.channels_last), y, y[:, :0]

    return draw
