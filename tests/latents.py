"""Tiny random pipelines of diffusers, text- and class-conditional, for the tests of latent diffusion."""

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WORDS = ("a", "photo", "of", "smiling", "sad", "person", ",", ".")
"""What the tiny text encoder knows; it has the letters of these words as tokens too, but never learned them."""

LENGTH = 12
"""The longest text in tokens, its start and end included."""


def tokenizer(length=None):
    """A real CLIPTokenizer in which every one of WORDS is one token."""
    vocab, merges = {"<|startoftext|>": 0, "<|endoftext|>": 1}, []
    for letter in sorted(set("".join(WORDS))):
        vocab |= {letter: len(vocab), f"{letter}</w>": len(vocab) + 1}
    for word in WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            if (pieces[0], pieces[1]) not in merges:
                merges.append((pieces[0], pieces[1]))
            pieces[:2] = [pieces[0] + pieces[1]]
            vocab.setdefault(pieces[0], len(vocab))
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=length or LENGTH)


def scheduler(**changes):
    settings = dict(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=100
    )
    return DDIMScheduler(**settings | dict(clip_sample=False, steps_offset=1) | changes)


def autoencoder(levels=2, **changes):
    blocks = {"block_out_channels": (4,) * levels, "norm_num_groups": 2, "latent_channels": 4}
    ends = {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
    }
    return AutoencoderKL(**blocks | ends | {"sample_size": 16, "scaling_factor": 0.7} | changes)


def stable_diffusion(levels=2, seed=0, **parts):
    """A StableDiffusionPipeline of 4-channel latents, factor 2**(levels - 1)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokens = tokenizer()
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokens),
                hidden_size=8,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=LENGTH,
                bos_token_id=0,
                eos_token_id=1,
            )
        )
        with torch.no_grad():  # tokens that never occurred in training
            table = text.get_input_embeddings().weight
            known = {i for word in WORDS for i in tokens(word, add_special_tokens=False).input_ids} | {0, 1}
            table[[i for i in range(len(table)) if i not in known]] = 0
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(4, 8),
            layers_per_block=1,
            norm_num_groups=2,
            cross_attention_dim=8,
            attention_head_dim=2,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )
        made = dict(vae=autoencoder(levels), unet=unet, text_encoder=text.eval(), tokenizer=tokens)
        made |= dict(scheduler=scheduler(), safety_checker=None, feature_extractor=None)
        made |= dict(requires_safety_checker=False)
        pipeline = StableDiffusionPipeline(**made | parts)
    for part in (pipeline.vae, pipeline.unet):
        part.eval()
    return pipeline


def dit(classes=5, seed=0, levels=2, **changes):
    """A DiTPipeline of 8x8 latents with learned variance; image size 16."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        settings = dict(num_attention_heads=2, attention_head_dim=4, in_channels=4, out_channels=8)
        settings |= dict(num_layers=1, sample_size=8, patch_size=2, num_embeds_ada_norm=classes)
        transformer = DiTTransformer2DModel(**settings | changes)
        labels = {k: f"class {k}, number {k}" for k in range(classes)}
        pipeline = DiTPipeline(transformer, autoencoder(levels), scheduler(), id2label=labels)
    for part in (pipeline.vae, pipeline.transformer):
        part.eval()
    return pipeline
