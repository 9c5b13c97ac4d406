"""Latent diffusion models: `StableDiffusionPipeline` (text) and `DiTPipeline` (classes) of diffusers, one interface.

model = zoo.load("avatars/sd")                                   # shipped; or a folder, or a hub name
model = zoo.latent_diffusion(StableDiffusionPipeline(...))       # or a pipeline that is loaded already
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from cfx_lib.zoo.denoiser import betas_of

__all__ = ["LatentDiffusion"]

PARTS = {
    "text": ("vae", "unet", "text_encoder", "tokenizer", "scheduler"),
    "class": ("vae", "transformer", "scheduler"),
}
WORD = re.compile(r"\w+|[^\w\s]+")


class LatentDiffusion(nn.Module):
    """A conditional diffusion model in the latent space of an autoencoder (Rombach et al. 2022; Peebles and Xie 2023).

    `pipeline`: a StableDiffusionPipeline (`kind` "text") or a DiTPipeline (`kind` "class"); its parts are used where
    they are and are not changed. Images are (N,C,H,W) in [-1,1], latents (N,c,H/factor,W/factor) of about unit variance.
    `factor`; `channels` (c) of the latents, `image_channels` (C) of the images; `alpha_bar` (T,) float64 on the CPU;
    `image_size`: the only size that it takes, None for any multiple of `factor`; `native_size`: the one it was made for.
    `bf16` computes by autocast; inputs and outputs keep their dtype. Gradients flow through `encode`, `decode` and `eps`.

    Raises ValueError for other pipelines, a pipeline without a part (it says which), parts that do not fit together,
    and schedules or networks that are not known.
    """

    def __init__(
        self,
        pipeline: Any,
        name: str = "",
        *,
        bf16: bool = False,
        channels_last: bool = False,
        compile: bool = False,
    ) -> None:
        kind = _check_pipeline(pipeline)
        super().__init__()
        self.pipeline, self.kind, self.vae = pipeline, kind, pipeline.vae
        self.network = pipeline.unet if self.kind == "text" else pipeline.transformer
        self.text_encoder = pipeline.text_encoder if self.kind == "text" else None
        self.name = name or type(pipeline).__name__
        schedule = dict(pipeline.scheduler.config)
        self.alpha_bar = torch.cumprod(1 - betas_of(schedule, f"the scheduler of {self.name}"), 0)
        self.prediction_type = schedule.get("prediction_type", "epsilon")
        self.factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.channels = int(self.vae.config.latent_channels)
        self.image_channels = int(self.vae.config.in_channels)
        size = self.network.config.sample_size
        self.native_size = self.factor * int(size if isinstance(size, int) else size[0])
        self.image_size = self.native_size if self.kind == "class" else None
        self.bf16, self.channels_last = bf16, channels_last
        self._call = [torch.compile(self.network) if compile else self.network]  # in a list: not a submodule

    # --- the autoencoder ------------------------------------------------------------------------------------

    def encode(self, x: Tensor) -> Tensor:
        """E(x), the mean of the posterior, scaled: (N,C,H,W) in [-1,1] -> (N,c,h,w). Raises ValueError for the size."""
        self._check_sides(x)
        with self._autocast(x):
            mean = self.vae.encode(self._given(x, self.vae)).latent_dist.mode().to(x.dtype)
        config = self.vae.config
        return (mean - (config.get("shift_factor") or 0.0)) * config.scaling_factor

    def decode(self, z: Tensor) -> Tensor:
        """D(z): (N,c,h,w) -> (N,C,H,W), about [-1,1], not cut."""
        config = self.vae.config
        z_own = z / config.scaling_factor + (config.get("shift_factor") or 0.0)
        with self._autocast(z):
            return self.vae.decode(self._given(z_own, self.vae)).sample.to(z.dtype)

    # --- the diffusion model --------------------------------------------------------------------------------

    def eps(self, z: Tensor, t: Tensor | int, cond: Tensor) -> Tensor:
        """The predicted noise eps_theta(z, t, c): (N,c,h,w), timesteps (N,) in 0..T-1, `condition(...)` -> (N,c,h,w).

        A network that predicts the velocity v (Salimans and Ho 2022, App. D) gives eps = sqrt(alpha_bar) v + sqrt(1-alpha_bar) z
        all the same; the variance that a DiT has learned is dropped.
        """
        t = torch.as_tensor(t, device=z.device).expand(len(z))
        given = self._given(z, self.network)
        with self._autocast(z):
            if self.kind == "text":
                out = self._call[0](given, t, encoder_hidden_states=cond.to(given.dtype)).sample
            else:
                out = self._call[0](given, timestep=t, class_labels=cond).sample
        out = out[:, : self.channels].to(z.dtype)
        if self.prediction_type == "epsilon":
            return out.contiguous()
        alpha_bar = self.alpha_bar.to(z.device)[t].to(z.dtype).view(-1, 1, 1, 1)
        return (alpha_bar.sqrt() * out + (1 - alpha_bar).sqrt() * z).contiguous()

    # --- conditions -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def condition(self, wanted: Sequence[str] | Tensor) -> Tensor:
        """c of N texts: (N, length, width); of N classes, given by id (N,) or by name: (N,) long.

        Raises ValueError for a text with words that the tokenizer or the text encoder does not know (it says which),
        for one that is too long, and for classes that the model does not have.
        """
        if isinstance(wanted, str):
            raise ValueError(
                f"the condition is the text {wanted!r}; expected a list with one for each image."
            )
        if self.kind == "class":
            return self._labels(wanted)
        if isinstance(wanted, Tensor) or not all(isinstance(one, str) for one in wanted):
            raise ValueError(
                f"the condition is {wanted!r}; expected texts, since {self.name} is conditioned on text."
            )
        self._check_prompts(list(wanted))
        unique = list(dict.fromkeys(wanted))
        rows = [unique.index(text) for text in wanted]
        return self._embed(unique)[rows]

    @torch.no_grad()
    def unconditional(self, n: int) -> Tensor:
        """The empty condition of n images: the empty text, or the null class."""
        if self.kind == "class":
            return torch.full((n,), self.num_classes, device=self.device)
        return self._embed([""]).repeat(n, 1, 1)

    @property
    def num_classes(self) -> int | None:
        """Number of classes of a class-conditional model; the null class comes after them. None for text."""
        return int(self.network.config.num_embeds_ada_norm) if self.kind == "class" else None

    @property
    def labels(self) -> dict[str, int]:
        """Names of the classes -> ids, as the DiTPipeline has them; empty for text."""
        return dict(getattr(self.pipeline, "labels", None) or {})

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def unknown_words(self, text: str) -> list[str]:
        """The words of a text that are not known: an unknown token, or one that the text encoder never learned.

        A token that never occurred in training has an all-zero row in the encoder's embedding; CLIP has no such row.
        """
        table = self.text_encoder.get_input_embeddings().weight
        unknown = []
        for word in text.split():
            if self._knows(word, table):
                continue
            pieces = WORD.findall(word)
            unknown += [piece for piece in pieces if not self._knows(piece, table)] or [word]
        return list(dict.fromkeys(unknown))

    def _knows(self, word: str, table: Tensor) -> bool:
        ids = self.pipeline.tokenizer(word, add_special_tokens=False).input_ids
        rows = table[torch.tensor(ids, dtype=torch.long, device=table.device)]
        return self.pipeline.tokenizer.unk_token_id not in ids and bool((rows != 0).any(1).all())

    @property
    def max_tokens(self) -> int:
        """The longest text in tokens, its start and end included."""
        return min(
            int(self.pipeline.tokenizer.model_max_length), self.text_encoder.config.max_position_embeddings
        )

    def _check_prompts(self, texts: list[str]) -> None:
        for text in dict.fromkeys(texts):
            unknown = self.unknown_words(text)
            if unknown:
                raise ValueError(
                    f"the prompt {text!r} has words that {self.name} does not know: {', '.join(map(repr, unknown))}. "
                    "Use other words for them."
                )
            length = len(self.pipeline.tokenizer(text).input_ids)
            if length > self.max_tokens:
                raise ValueError(
                    f"the prompt {text!r} has {length} tokens with its start and end; {self.name} takes at most "
                    f"{self.max_tokens}. Shorten it."
                )

    def _embed(self, texts: list[str]) -> Tensor:
        tokens = self.pipeline.tokenizer(
            texts, padding="max_length", max_length=self.max_tokens, return_tensors="pt"
        ).to(self.device)
        wanted = getattr(self.text_encoder.config, "use_attention_mask", False)
        mask = tokens.attention_mask if wanted else None
        return self.text_encoder(tokens.input_ids, attention_mask=mask)[0]

    def _labels(self, wanted: Sequence[str] | Tensor) -> Tensor:
        names = [] if isinstance(wanted, Tensor) else [one for one in wanted if isinstance(one, str)]
        for name in names:
            if name not in self.labels:
                near = difflib.get_close_matches(name, self.labels, 3)
                hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
                raise ValueError(f"{self.name} has no class named {name!r}.{hint}")
        ids = wanted if isinstance(wanted, Tensor) else [self.labels.get(one, one) for one in wanted]
        ids = torch.as_tensor(ids).to(self.device)
        if ids.is_floating_point() or ids.ndim != 1:
            raise ValueError(
                f"the condition has shape {tuple(ids.shape)} and dtype {ids.dtype}; expected (N,) class ids."
            )
        wrong = ids[(ids < 0) | (ids >= self.num_classes)].tolist()
        if wrong:
            raise ValueError(
                f"{self.name} has the classes 0 to {self.num_classes - 1}; the class {wrong[0]} was asked for."
            )
        return ids.long()

    # --- inside ---------------------------------------------------------------------------------------------

    def _autocast(self, x: Tensor) -> Any:
        return torch.autocast(x.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def _given(self, x: Tensor, part: nn.Module) -> Tensor:
        """x in the dtype of the part's weights and in the memory format that was asked for."""
        x = x.to(next(part.parameters()).dtype)
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x

    def _check_sides(self, x: Tensor) -> None:
        height, width = x.shape[-2:]
        if self.image_size is not None and (height, width) != (self.image_size, self.image_size):
            raise ValueError(
                f"the images have {height}x{width} pixels; {self.name} takes {self.image_size}x{self.image_size}."
            )
        if x.ndim != 4 or x.shape[1] != self.image_channels or height % self.factor or width % self.factor:
            raise ValueError(
                f"the images have the shape {tuple(x.shape)}; {self.name} takes (N, {self.image_channels}, H, W) with "
                f"sides divisible by {self.factor}. Resize or crop them."
            )

    def __repr__(self) -> str:
        weights = sum(p.numel() for p in self.parameters()) / 1e6
        place = f"{self.channels} latent channels, factor {self.factor}"
        return f"LatentDiffusion({self.name}: conditioned on {self.kind}, {place}, {weights:.1f} M weights)"


def _check_pipeline(pipeline: Any) -> str:
    """The kind of a pipeline, if it has all parts and they fit together. Raises ValueError."""
    from diffusers import DiTPipeline, StableDiffusionPipeline

    kinds = {StableDiffusionPipeline: "text", DiTPipeline: "class"}
    kind = next((kind for cls, kind in kinds.items() if isinstance(pipeline, cls)), None)
    if kind is None:
        raise ValueError(
            f"the model is a {type(pipeline).__name__}; expected a StableDiffusionPipeline or a DiTPipeline of "
            "diffusers. Other pipelines of the same parts: StableDiffusionPipeline.from_pipe(pipeline)."
        )
    missing = [part for part in PARTS[kind] if getattr(pipeline, part, None) is None]
    if missing:
        raise ValueError(
            f"the {type(pipeline).__name__} has no {' and no '.join(missing)}; expected {', '.join(PARTS[kind])}. "
            "Load or pass the missing parts."
        )
    network, latent = pipeline.unet if kind == "text" else pipeline.transformer, pipeline.vae.config
    if network.config.in_channels != latent.latent_channels:
        raise ValueError(
            f"the denoiser takes {network.config.in_channels} channels, the autoencoder's latents have "
            f"{latent.latent_channels}; expected the same number. Use a pipeline for generation, not for inpainting."
        )
    if kind == "text":
        given, taken = pipeline.text_encoder.config.hidden_size, network.config.cross_attention_dim
        if given != taken:
            raise ValueError(f"the text encoder gives vectors of {given} numbers; the UNet takes {taken}.")
    elif _rows_of_classes(network) != network.config.num_embeds_ada_norm + 1:
        raise ValueError(
            f"the DiT has {_rows_of_classes(network)} class embeddings for {network.config.num_embeds_ada_norm} "
            "classes; expected one more, the null class of classifier-free guidance."
        )
    return kind


def _rows_of_classes(network: nn.Module) -> int:
    tables = (m for name, m in network.named_modules() if name.endswith("class_embedder.embedding_table"))
    return next((table.num_embeddings for table in tables), 0)
