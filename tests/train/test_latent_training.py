"""The small latent diffusion models: tokenizer, autoencoder, losses, batches; trained, stored, read by diffusers alone."""

from __future__ import annotations

import dataclasses
import json
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from cfx_lib.train import latent, latent_cards, tokens
from cfx_lib.train.loop import Recipe, fit
from cfx_lib.train.recipes import RECIPES
from cfx_lib.worlds import avatars

TINY_VAE = {"block_out_channels": (8, 8, 8), "norm_num_groups": 4}
TINY_UNET = {
    "block_out_channels": (8, 8, 8),
    "norm_num_groups": 4,
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
}
TINY_TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
TINY_DIT = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def drawn():  # noqa: ANN201
    described = avatars.sample(24, 5)
    return avatars.render_uint8(described), described


@pytest.fixture(scope="module")
def tokenizer():  # noqa: ANN201
    return tokens.make_tokenizer(avatars.WORDS)


@pytest.fixture
def stage(monkeypatch, tmp_path, drawn):  # noqa: ANN001, ANN201
    """Every split is 24 avatars, the cache is empty, a tiny autoencoder is trained."""
    images, described = drawn
    monkeypatch.setattr(
        avatars, "load_uint8", lambda split, n=None, **_: (images[:n], described[: len(images[:n])])
    )
    monkeypatch.setenv("CFX_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    latent.store_codec(latent.Codec(**TINY_VAE), latent.codec_folder())
    return tmp_path


def short(name: str, steps: int = 3, **changes: object):  # noqa: ANN202
    job = RECIPES[name]()
    recipe = dataclasses.replace(job.recipe, steps=steps, batch=4, warmup=1, cpu=True, precision="fp32")
    return dataclasses.replace(job, recipe=recipe, **changes)


# ---------------------------------------------------------------------------------------------------- tokenizer


def test_every_word_is_one_token(tokenizer) -> None:  # noqa: ANN001
    for word in (*avatars.WORDS, ",", "."):
        assert len(tokenizer(word).input_ids) == 3, word
    assert len({tokenizer(word).input_ids[1] for word in avatars.WORDS}) == len(avatars.WORDS)
    assert len(tokenizer("zebra").input_ids) > 3, "other words fall into pieces"
    assert tokenizer("Zürich 漢字").input_ids.count(tokenizer.eos_token_id) == 1, "nothing is unknown"


def test_a_sentence_is_its_words(tokenizer) -> None:  # noqa: ANN001
    text = "a personas drawing of a smiling person, with glasses."
    words = text.replace(",", " ,").replace(".", " .").split()
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    assert ids[1:-1] == [tokenizer(w).input_ids[1] for w in words]
    assert tokenizer(text.upper()).input_ids == ids, "lower-cased"


def test_merges_of_words_that_share_pieces() -> None:
    """Words that begin, end or lie within others."""
    words = ("a", "at", "bat", "batman", "man", "mana", "abba", "aa", "aaa")
    tokenizer = tokens.make_tokenizer(words)
    assert all(len(tokenizer(w).input_ids) == 3 for w in words)
    with pytest.raises(ValueError, match="lower-case letters"):
        tokens.make_tokenizer(("two words",))


def test_token_ids(tokenizer) -> None:  # noqa: ANN001
    ids = tokens.token_ids(tokenizer, ["", "a person"])
    assert ids.shape == (2, tokens.LENGTH)
    assert ids[0, 0] == tokenizer.bos_token_id and (ids[0, 1:] == tokenizer.eos_token_id).all()
    with pytest.raises(ValueError, match="more than 32 tokens"):
        tokens.token_ids(tokenizer, ["a " * 40])
    everyone = avatars.sample(300, 0)
    assert latent.phrasings(everyone, tokenizer, 3).shape == (3, 300, tokens.LENGTH), "captions fit"


def test_tokenizer_is_read_back_from_either_format(tokenizer, tmp_path) -> None:  # noqa: ANN001
    from transformers import CLIPTokenizer

    tokens.save_tokenizer(tokenizer, tmp_path)
    text = "a micah portrait of an unhappy, old person with zebra hair"
    for left_out in ((), ("tokenizer.json",)):
        for name in left_out:
            (tmp_path / name).unlink()
        read = CLIPTokenizer.from_pretrained(tmp_path)
        assert read(text).input_ids == tokenizer(text).input_ids
        assert read.model_max_length == tokens.LENGTH and len(read) == len(tokenizer)
        assert (read.bos_token_id, read.eos_token_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id)


# ---------------------------------------------------------------------------------------------------- autoencoder


def test_standardise_keeps_the_function_and_centres_the_latents(drawn) -> None:  # noqa: ANN001
    torch.manual_seed(1)
    vae = latent.Codec(**TINY_VAE).vae.eval()
    nn.init.normal_(vae.quant_conv.bias)
    x = avatars.to_tensor(drawn[0])
    mean, log_variance = latent.encode(vae, x)
    noise = torch.randn(mean.shape, generator=seeded())
    with torch.no_grad():
        before = vae.decode(mean + (0.5 * log_variance).exp() * noise).sample
        latent.standardise(vae, x)
        mean, log_variance = latent.encode(vae, x)
        after = vae.decode(mean + (0.5 * log_variance).exp() * noise).sample
    assert torch.allclose(before, after, atol=1e-4)
    assert torch.allclose(mean.mean((0, 2, 3)), torch.zeros(4), atol=1e-4)
    variance = mean.var((0, 2, 3), correction=0) + log_variance.exp().mean((0, 2, 3))
    assert torch.allclose(variance, torch.ones(4), atol=1e-4)
    assert vae.config.scaling_factor == pytest.approx(1, abs=1e-3)


def test_codec_loss_is_zero_for_a_perfect_autoencoder_and_sees_edges() -> None:
    x = torch.rand(2, 3, 8, 8, generator=seeded()) * 2 - 1
    flat = torch.zeros(2, 4, 2, 2)
    loss = latent.codec_loss(square=2.0, edges=0.5, kl=1.0)
    assert loss(lambda x, noise: (x, flat, flat), seeded(), x, flat) == pytest.approx(0, abs=1e-6)
    brighter = loss(lambda x, noise: (x + 0.1, flat, flat), seeded(), x, flat)
    assert brighter == pytest.approx(0.1 + 2 * 0.01, abs=1e-5), "no edge moved"
    ramp = 0.1 * torch.arange(8.0).view(1, 1, 1, 8)
    tilted = loss(lambda x, noise: (x + ramp, flat, flat), seeded(), x, flat)
    assert tilted == pytest.approx(0.35 + 2 * 0.01 * 17.5 + 0.5 * 0.1, abs=1e-4)
    spread = loss(lambda x, noise: (x, flat + 1, flat), seeded(), x, flat)
    assert spread == pytest.approx(0.5 * 16, abs=1e-4), "KL of 16 latents with mean 1"


def test_no_autoencoder_says_what_to_do(tmp_path) -> None:  # noqa: ANN001
    with pytest.raises(FileNotFoundError, match="avatars/autoencoder"):
        latent.load_codec(tmp_path)


def test_autoencoder_stage(stage) -> None:  # noqa: ANN001
    """Trained, stored where the next stages look for it, its card written."""
    card = partial(latent_cards.codec_card, n=24)
    job = short("avatars/autoencoder", model=partial(latent.Codec, **TINY_VAE), card=card)
    job.run("avatars/autoencoder", stage / "work", None)
    out = latent.codec_folder()
    figures = json.loads((out / "figures.json").read_text())
    assert figures["psnr"] > 0 and set(figures["kept"]["personas"]) > {"smile", "mean", "all"}
    assert {p.dtype for p in latent.load_codec().parameters()} == {torch.float32}
    stored = load_file(out / "diffusion_pytorch_model.safetensors")
    assert {v.dtype for v in stored.values()} == {torch.float16}
    assert (out / "reconstructions.png").exists()


# ---------------------------------------------------------------------------------------------------- batches, loss


def test_latents_are_scaled_and_cached(stage, monkeypatch) -> None:  # noqa: ANN001
    vae = latent.load_codec()
    mean, deviation = latent.latents(vae)
    assert mean.shape == deviation.shape == (24, 4, 16, 16) and mean.dtype == torch.float16
    z = mean.float() + deviation.float() * torch.randn(mean.shape, generator=seeded())
    assert float(z.std()) == pytest.approx(1, abs=0.05)
    monkeypatch.setattr(latent, "encode", None)  # not computed again
    assert torch.equal(latent.latents(vae)[0], mean)


def test_batches_drop_conditions_and_repeat() -> None:
    mean, deviation = torch.zeros(50, 4, 2, 2), torch.ones(50, 4, 2, 2)
    ids, empty = torch.arange(3).view(3, 1, 1).expand(3, 50, 6).short() + 1, torch.zeros(6, dtype=torch.long)
    draw = latent.text_batches(mean, deviation, ids, empty, 0.2)
    z, c = draw(seeded(), 4000)
    assert (
        z.shape == (4000, 4, 2, 2) and float(z.std()) == pytest.approx(1, abs=0.02) and c.dtype == torch.long
    )
    shares = c[:, 0].bincount(minlength=4) / 4000
    assert torch.allclose(shares, torch.tensor([0.2, 0.8 / 3, 0.8 / 3, 0.8 / 3]), atol=0.03)
    again = draw(seeded(), 4000)
    assert torch.equal(z, again[0]) and torch.equal(c, again[1])
    z, c = latent.class_batches(mean, deviation, torch.zeros(50, dtype=torch.long), 7, 0.12)(seeded(), 4000)
    assert set(c.tolist()) == {0, 7} and float((c == 7).float().mean()) == pytest.approx(0.12, abs=0.02)


def test_noise_loss_is_the_weighted_formula() -> None:
    alpha_bar, z = latent.make_scheduler().alphas_cumprod, torch.randn(500, 4, 2, 2, generator=seeded())
    times = []

    def clairvoyant(z_t: torch.Tensor, t: torch.Tensor, z_0: torch.Tensor) -> torch.Tensor:
        times.append(t)
        a = alpha_bar[t].view(-1, 1, 1, 1)
        return (z_t - a.sqrt() * z_0) / (1 - a).sqrt()

    loss = latent.noise_loss(alpha_bar)
    assert loss(clairvoyant, seeded(), z, z) == pytest.approx(0, abs=1e-6)
    assert torch.equal(times[0].sort().values, times[0]) and (times[0].diff() <= 4).all(), "stratified"
    nothing = loss(lambda z_t, t, c: torch.zeros_like(z_t), seeded(), z, z)
    assert nothing == pytest.approx(1, abs=0.05), "weights have mean 1"
    weight = (1 / alpha_bar).clamp(max=5)
    off = loss(lambda *a: clairvoyant(*a) + (a[1] >= 500).float().view(-1, 1, 1, 1), seeded(), z, z)
    assert off == pytest.approx(float(weight[500:].sum() / weight.sum()), rel=0.02)


def test_scheduler_is_stable_diffusions() -> None:
    config = latent.make_scheduler().config
    assert (config.prediction_type, config.beta_schedule) == ("epsilon", "scaled_linear")
    assert (config.beta_start, config.beta_end, config.num_train_timesteps) == (0.00085, 0.012, 1000)


# ---------------------------------------------------------------------------------------------------- text to image


def tiny_text(tokenizer) -> latent.TextToImage:  # noqa: ANN001
    return latent.TextToImage(tokenizer, TINY_UNET, TINY_TEXT)


def test_text_to_image_is_a_pipeline(stage, tokenizer) -> None:  # noqa: ANN001
    from diffusers import StableDiffusionPipeline

    out = stage / "sd"
    card = partial(latent_cards.text_card, n=2, steps=2, faces=4)
    job = short("avatars/sd", model=lambda: tiny_text(tokenizer), card=card)
    job.run("avatars/sd", stage / "work", out)
    pipeline = StableDiffusionPipeline.from_pretrained(out)
    assert pipeline.scheduler.config.prediction_type == "epsilon" and pipeline.safety_checker is None
    drawn = pipeline("a smiling person", num_inference_steps=2, generator=seeded(), output_type="pt").images
    assert drawn.shape == (1, 3, 64, 64) and drawn.isfinite().all()

    seen = torch.load(stage / "work" / "state.pt", weights_only=True)["model"]["seen"]
    rows = pipeline.text_encoder.get_input_embeddings().weight
    assert torch.equal((rows != 0).any(1), seen), "rows of tokens that never occurred are zero"
    assert seen[[tokenizer.bos_token_id, tokenizer.eos_token_id, *tokenizer("person").input_ids]].all()
    assert not seen[tokenizer("zebra").input_ids[1]]
    for name in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        stored = load_file(out / f"{name}.safetensors")
        assert {v.dtype for v in stored.values() if v.is_floating_point()} == {torch.float16}
    assert str(stage) not in (out / "vae" / "config.json").read_text(), "no folder of this machine"
    kept = latent.codec_folder() / "diffusion_pytorch_model.safetensors"
    assert (out / "vae" / kept.name).read_bytes() == kept.read_bytes(), "the autoencoder's bytes"
    assert "personas/oracle" in json.loads((out / "figures.json").read_text())["prompts"]
    assert "| smile |" in (out / "README.md").read_text() and (out / "samples.png").exists()


def test_text_to_image_goes_on_where_it_stopped(stage, tokenizer) -> None:  # noqa: ANN001
    job = short("avatars/sd", steps=4)
    trained = []
    for name, stops in (("whole", (4,)), ("halves", (2, 4))):
        for steps in stops:
            torch.manual_seed(0)
            recipe = Recipe(
                steps=steps, batch=4, lr=1e-3, warmup=1, cpu=True, precision="fp32", decay_from=0.99
            )
            model, _ = fit(tiny_text(tokenizer), job.batches(), job.loss(), recipe, stage / name)
        trained.append(model.state_dict())
    assert torch.equal(trained[0]["seen"], trained[1]["seen"])
    assert all(torch.allclose(trained[0][k].float(), trained[1][k].float(), atol=2e-3) for k in trained[0])


def test_text_changes_the_noise_only_up_to_the_end(tokenizer) -> None:  # noqa: ANN001
    """What the pipeline's encoder sees is what training saw: same ids, same states."""
    torch.manual_seed(0)
    model = tiny_text(tokenizer).eval()
    ids = tokens.token_ids(tokenizer, ["a person", "a smiling person"])
    z, t = torch.randn(1, 4, 16, 16, generator=seeded()).expand(2, -1, -1, -1), torch.tensor([500, 500])
    with torch.no_grad():
        a, b = model(z, t, ids)
        states = model.text(ids).last_hidden_state
    assert not torch.allclose(a, b) and torch.allclose(states[0, 0], states[1, 0], atol=1e-6), "causal"
    assert not model.seen.any(), "evaluation marks nothing as seen"


# ---------------------------------------------------------------------------------------------------- transformer


def test_class_to_image_is_a_pipeline(stage) -> None:  # noqa: ANN001
    from diffusers import DiTPipeline

    out, classes = stage / "dit", len(avatars.CLASSES)
    job = short("avatars/dit", model=lambda: latent.ClassToImage(classes, **TINY_DIT))
    job = dataclasses.replace(job, card=partial(latent_cards.class_card, n=4, steps=2))
    job.run("avatars/dit", stage / "work", out)
    pipeline = DiTPipeline.from_pretrained(out)
    assert pipeline.transformer.config.num_embeds_ada_norm == classes
    assert pipeline.get_label_ids(["micah smiling glasses"]) == [avatars.class_id("micah", True, True)]
    drawn = pipeline(
        [3], guidance_scale=1, num_inference_steps=2, generator=seeded(), output_type="pt"
    ).images
    assert drawn.shape == (1, 3, 64, 64) and drawn.isfinite().all()
    x = latent_cards.class_samples(pipeline, torch.tensor([3, 4]), steps=2)
    assert (
        torch.equal(x[1:], latent_cards.class_samples(pipeline, torch.tensor([4]), steps=2, seed=1))
        or (x[1:] - latent_cards.class_samples(pipeline, torch.tensor([4]), steps=2, seed=1)).abs().max()
        < 1e-4
    ), "independent of the batch"
    figures = json.loads((out / "figures.json").read_text())
    assert set(figures["classes"]["personas/oracle"]) == {"smile", "glasses"}


def test_classes_are_not_dropped_inside_and_blocks_begin_as_the_identity() -> None:
    torch.manual_seed(0)
    model = latent.ClassToImage(5, **TINY_DIT).train()
    z, t = torch.randn(3, 4, 16, 16, generator=seeded()), torch.tensor([1, 500, 999])
    assert (model(z, t, torch.tensor([0, 4, 5])) == 0).all()
    for p in model.parameters():
        nn.init.normal_(p, std=0.2)
    first = model(z, t, torch.tensor([0, 1, 2]))
    assert torch.equal(first, model(z, t, torch.tensor([0, 1, 2]))), "nothing random in training"
    assert not torch.allclose(first, model(z, t, torch.tensor([5, 5, 5])))


# ---------------------------------------------------------------------------------------------------- oracle, gates


def test_oracle_of_all_styles(stage) -> None:  # noqa: ANN001
    from cfx_lib import zoo

    out = stage / "oracle"
    job = short("avatars/oracle")
    job.run("avatars/oracle", stage / "work", out)
    model = zoo.load(str(out))
    assert model.attributes == avatars.ATTRIBUTES and model(torch.zeros(2, 3, 64, 64)).shape == (2, 13)
    assert sum(f.stat().st_size for f in out.iterdir()) < 1_000_000
    assert set(json.loads((out / "figures.json").read_text())["clean"]) == set(avatars.ATTRIBUTES)


def test_gates() -> None:
    x = torch.zeros(2, 3, 4, 4)
    y = torch.stack([x[0] + 0.2, x[1] + 2.0])
    assert latent_cards.psnr(x, y).tolist() == pytest.approx([20.0, 0.0], abs=1e-4)

    class Judge(nn.Module):
        attributes = ("bright", "dark")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            level = x.mean((1, 2, 3)) - 1
            return torch.stack([level, 0.5 - level], 1)

    assert latent_cards.kept(Judge(), x, y) == {"bright": 0.5, "dark": 0.5, "mean": 0.5, "all": 0.5}
    low, high = latent_cards.wilson(8, 10)
    assert (low, high) == (pytest.approx(0.490, abs=1e-3), pytest.approx(0.943, abs=1e-3))
    assert latent_cards.wilson(0, 10)[0] == 0 and latent_cards.wilson(10, 10)[1] == pytest.approx(1)
