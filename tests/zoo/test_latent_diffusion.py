"""Latent diffusion models: the parts of diffusers behind one interface, from disk, and what is refused."""

import json
import shutil

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from latents import autoencoder, dit, scheduler, stable_diffusion, tokenizer

from cfx_lib import zoo
from cfx_lib.zoo.__main__ import main

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def images(n=2, size=16, seed=0):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def latents(n=2, size=8, seed=1):
    return torch.randn(n, 4, size, size, generator=torch.Generator().manual_seed(seed))


def denoiser():
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "attention_head_dim": 2}
    return UNet2DModel(sample_size=8, block_out_channels=(4,), norm_num_groups=2, **blocks)


@pytest.fixture(scope="module")
def sd():
    return stable_diffusion()


@pytest.fixture(scope="module")
def classes():
    return dit()


@pytest.fixture(scope="module")
def saved(sd, classes, tmp_path_factory):
    root = tmp_path_factory.mktemp("pipelines")
    sd.save_pretrained(root / "sd")
    classes.save_pretrained(root / "dit")
    index = json.loads((root / "dit/model_index.json").read_text())
    names = {"id2label": {str(k): name for name, k in classes.labels.items() if name.startswith("number")}}
    (root / "dit/model_index.json").write_text(json.dumps(index | names))  # as the published ones have it
    return root


@pytest.fixture
def folder(saved, tmp_path):
    shutil.copytree(saved / "sd", tmp_path / "sd")
    return tmp_path / "sd"


# --------------------------------------------------------------------------------------------- what is computed


def test_the_facts_of_a_pipeline(sd, classes):
    text, label = zoo.latent_diffusion(sd), zoo.latent_diffusion(classes)
    assert (text.kind, text.factor, text.channels, text.image_channels) == ("text", 2, 4, 3)
    assert (text.image_size, text.native_size, text.num_classes) == (None, 16, None)
    assert (label.kind, label.image_size, label.num_classes) == ("class", 16, 5)
    assert (
        text.pipeline is sd and text.name == "StableDiffusionPipeline" and "conditioned on text" in repr(text)
    )
    torch.testing.assert_close(text.alpha_bar, sd.scheduler.alphas_cumprod.double(), rtol=0, atol=1e-6)
    assert text.alpha_bar.dtype == torch.float64


def test_latents_are_the_scaled_mean_of_the_posterior(sd):
    model, x = zoo.latent_diffusion(sd), images()
    with torch.no_grad():
        expected = sd.vae.encode(x).latent_dist.mean * 0.7
        torch.testing.assert_close(model.encode(x), expected)
        torch.testing.assert_close(model.decode(expected), sd.vae.decode(expected / 0.7).sample)
    shifted = zoo.latent_diffusion(stable_diffusion(vae=autoencoder(shift_factor=0.3)))
    with torch.no_grad():
        mean = shifted.vae.encode(x).latent_dist.mean
        torch.testing.assert_close(shifted.encode(x), (mean - 0.3) * 0.7)
        torch.testing.assert_close(shifted.decode((mean - 0.3) * 0.7), shifted.vae.decode(mean).sample)


def test_eps_is_what_the_network_of_the_pipeline_says(sd, classes):
    z, t = latents(), torch.tensor([3, 70])
    text, label = zoo.latent_diffusion(sd), zoo.latent_diffusion(classes)
    with torch.no_grad():
        cond = text.condition(["a smiling person", "a sad person"])
        torch.testing.assert_close(text.eps(z, t, cond), sd.unet(z, t, cond).sample)
        torch.testing.assert_close(text.eps(z, 70, cond)[1], text.eps(z, t, cond)[1])
        ids = label.condition(torch.tensor([1, 4]))
        whole = classes.transformer(z, timestep=t, class_labels=ids).sample
        torch.testing.assert_close(label.eps(z, t, ids), whole[:, :4])  # without the learned variance
        assert not torch.allclose(label.eps(z, t, ids), label.eps(z, t, label.unconditional(2)))
        assert not torch.allclose(text.eps(z, t, cond), text.eps(z, t, text.unconditional(2)))


def test_velocity_becomes_epsilon(sd):
    model = zoo.latent_diffusion(stable_diffusion(scheduler=scheduler(prediction_type="v_prediction")))
    plain, z, t = zoo.latent_diffusion(sd), latents(), torch.tensor([3, 70])
    with torch.no_grad():
        cond = model.unconditional(2)
        alpha = model.alpha_bar[t].float().view(-1, 1, 1, 1)
        expected = alpha.sqrt() * plain.eps(z, t, cond) + (1 - alpha).sqrt() * z
        torch.testing.assert_close(model.eps(z, t, cond), expected)


def test_conditions_are_those_of_the_pipeline(sd, classes):
    text, label = zoo.latent_diffusion(sd), zoo.latent_diffusion(classes)
    prompts = ["a photo of a smiling person.", "sad", "a photo of a smiling person."]
    with torch.no_grad():
        expected, empty = sd.encode_prompt(prompts, "cpu", 1, True)
    torch.testing.assert_close(text.condition(prompts), expected)
    torch.testing.assert_close(text.unconditional(3), empty)
    assert label.condition([0, 4]).tolist() == label.condition(["class 0", "number 4"]).tolist() == [0, 4]
    assert label.unconditional(2).tolist() == [5, 5]
    assert not text.condition(prompts).requires_grad


def test_gradients_reach_the_latents_through_decoder_and_network(sd, classes):
    for pipeline in (sd, classes):
        model = zoo.latent_diffusion(pipeline)
        for f in (lambda z, m=model: m.eps(z, 5, m.unconditional(2)), model.decode):
            z = latents().requires_grad_()
            (g,) = torch.autograd.grad(f(z).square().sum(), z)
            assert torch.isfinite(g).all() and (g != 0).any()


def test_a_pipeline_of_the_user_is_left_as_it_is():
    pipeline = stable_diffusion()
    pipeline.unet.train()
    pipeline.vae.requires_grad_(False)
    model = zoo.latent_diffusion(pipeline)
    with torch.no_grad():
        model.decode(model.encode(images()))
    assert pipeline.unet.training and not pipeline.vae.training
    assert all(p.requires_grad for p in pipeline.unet.parameters())
    assert not any(p.requires_grad for p in pipeline.vae.parameters())
    assert pipeline.unet.dtype == torch.float32


def test_bf16_and_channels_last(saved):
    plain = zoo.load(saved / "sd")
    fast = zoo.load(saved / "sd", dtype="bf16", channels_last=True)
    z, cond = latents(), plain.condition(["sad", "smiling"])
    with torch.no_grad():
        for f, g in (
            (plain.decode, fast.decode),
            (lambda v: plain.eps(v, 9, cond), lambda v: fast.eps(v, 9, cond)),
        ):
            assert g(z).dtype == torch.float32 and not torch.equal(f(z), g(z))
            torch.testing.assert_close(f(z), g(z), rtol=0.1, atol=0.1)
    kernel = fast.network.conv_in.weight
    assert kernel.is_contiguous(memory_format=torch.channels_last)


def test_a_pipeline_in_another_precision_takes_and_gives_float32():
    model = zoo.latent_diffusion(stable_diffusion().to(torch.bfloat16))
    with torch.no_grad():
        z = model.encode(images())
        assert (
            z.dtype == model.decode(z).dtype == model.eps(z, 3, model.unconditional(2)).dtype == torch.float32
        )


# ---------------------------------------------------------------------------------------------------- from disk


def test_a_saved_pipeline_is_read_as_it_was(sd, classes, saved):
    z, x = latents(), images()
    for pipeline, name, wanted in ((sd, "sd", ["sad", "smiling"]), (classes, "dit", [1, 2])):
        model, given = zoo.latent_diffusion(saved / name), zoo.latent_diffusion(pipeline)
        assert model.name == name and not any(p.requires_grad for p in model.parameters())
        assert not any(m.training for m in model.modules())
        with torch.no_grad():
            torch.testing.assert_close(model.encode(x), given.encode(x))
            expected = given.eps(z, 9, given.condition(wanted))
            torch.testing.assert_close(model.eps(z, 9, model.condition(wanted)), expected)
    assert zoo.load(saved / "dit").labels["number 3"] == 3


def test_half_precision_on_disk_is_loaded_as_float32(tmp_path):
    stable_diffusion().to(torch.float16).save_pretrained(tmp_path / "sd")
    model = zoo.load(tmp_path / "sd")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    stable_diffusion().to(torch.float16).save_pretrained(tmp_path / "half", variant="fp16")
    assert {p.dtype for p in zoo.load(tmp_path / "half").parameters()} == {torch.float32}


def test_a_shipped_pipeline_is_checked(saved, tmp_path, monkeypatch):
    root = tmp_path / "data"
    shutil.copytree(saved / "sd", root / "weights/avatars/sd")
    monkeypatch.setenv("CFX_DATA", str(root))
    assert main(["checksums"]) == 0
    assert zoo.names() == ["avatars/sd"]
    model = zoo.load("avatars/sd")
    assert model.name == "avatars/sd" and model.condition(["a sad person"]).shape == (1, 12, 8)
    for name in ("unet/diffusion_pytorch_model.safetensors", "tokenizer/tokenizer.json"):
        path = root / "weights/avatars/sd" / name
        content = path.read_bytes()
        path.write_bytes(content[:-1] + b" ")
        with pytest.raises(ValueError, match="altered or damaged"):
            zoo.load("avatars/sd")
        path.write_bytes(content)
    with pytest.raises(FileNotFoundError, match="there is no model 'avatars/dit'"):
        zoo.load("avatars/dit")


# ------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder", "tokenizer", "scheduler"])
def test_a_pipeline_without_a_part_is_refused(part):
    pipeline = stable_diffusion()
    pipeline.register_modules(**{part: None})
    with pytest.raises(ValueError, match=f"StableDiffusionPipeline has no {part}; expected vae, unet"):
        zoo.latent_diffusion(pipeline)


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="takes 4 channels, the autoencoder's latents have 3"):
        zoo.latent_diffusion(stable_diffusion(vae=autoencoder(latent_channels=3)))
    without_null = dit()
    embedder = without_null.transformer.transformer_blocks[0].norm1.emb.class_embedder
    embedder.embedding_table = torch.nn.Embedding(5, 8)
    with pytest.raises(
        ValueError, match="5 class embeddings for 5 classes; expected one more, the null class"
    ):
        zoo.latent_diffusion(without_null)
    with pytest.raises(ValueError, match="prediction_type='sample'"):
        zoo.latent_diffusion(stable_diffusion(scheduler=scheduler(prediction_type="sample")))


def test_other_pipelines_are_refused():
    pipeline = DDPMPipeline(denoiser(), DDPMScheduler())
    with pytest.raises(
        ValueError, match="the model is a DDPMPipeline; expected a StableDiffusionPipeline or"
    ):
        zoo.latent_diffusion(pipeline)
    with pytest.raises(ValueError, match="dtype is 'fp16'"):
        zoo.latent_diffusion(stable_diffusion(), dtype="fp16")


def test_images_that_the_model_cannot_take_are_refused(sd, classes):
    with pytest.raises(ValueError, match="sides divisible by 2"):
        zoo.latent_diffusion(sd).encode(images(size=15))
    with pytest.raises(ValueError, match="32x32 pixels; DiTPipeline takes 16x16"):
        zoo.latent_diffusion(classes).encode(images(size=32))
    with pytest.raises(ValueError, match=r"takes \(N, 3, H, W\)"):
        zoo.latent_diffusion(sd).encode(images()[:, :1])


@pytest.mark.parametrize(
    "text, words",
    [
        ("a photo of a smiling zebra", "'zebra'"),  # z and b are no tokens at all
        ("a mild, sad person", "'mild'"),  # its letters are tokens, which were never learned
        ("a moping person of zen.", "'moping', 'zen'"),
        ("a sad! person", "'!'"),
    ],
)
def test_words_that_the_tokenizer_does_not_know_are_named(sd, text, words):
    model = zoo.latent_diffusion(sd)
    with pytest.raises(ValueError, match=f"does not know: {words}. Use other words"):
        model.condition(["a sad person", text])
    assert model.unknown_words("A photo of a smiling, sad person .") == []


def test_prompts_that_make_no_sense_are_refused(sd):
    model = zoo.latent_diffusion(sd)
    with pytest.raises(ValueError, match="has 13 tokens with its start and end; .* takes at most 12"):
        model.condition(["a " * 11])
    assert model.condition(["a " * 10]).shape == (1, 12, 8)
    with pytest.raises(ValueError, match="expected a list with one for each image"):
        model.condition("a sad person")
    with pytest.raises(
        ValueError, match="expected texts, since StableDiffusionPipeline is conditioned on text"
    ):
        model.condition(torch.tensor([1, 2]))


def test_classes_out_of_range_are_refused(classes):
    model = zoo.latent_diffusion(classes)
    for wrong in ([5], [0, -1], torch.tensor([1, 9])):
        with pytest.raises(
            ValueError, match=f"has the classes 0 to 4; the class {int(wrong[-1])} was asked for"
        ):
            model.condition(wrong)
    with pytest.raises(ValueError, match="no class named 'clas 3'. Did you mean 'class 3'"):
        model.condition(["clas 3"])
    with pytest.raises(ValueError, match="expected .N,. class ids"):
        model.condition(torch.zeros(2))


def test_broken_folders_are_refused(folder):
    index, weights = json.loads((folder / "model_index.json").read_text()), folder / "unet"
    file = weights / "diffusion_pytorch_model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-10])
    with pytest.raises(ValueError, match="is damaged: it has .*.10 bytes are missing"):
        zoo.load(folder)
    file.rename(weights / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match="only a legacy pickle .diffusion_pytorch_model.bin"):
        zoo.load(folder)
    with pytest.raises(ValueError, match="could not be read as a StableDiffusionPipeline"):
        zoo.load(folder, allow_pickle=True)  # it is no pickle either
    (weights / "diffusion_pytorch_model.bin").unlink()
    with pytest.raises(
        FileNotFoundError, match="holds no weights; expected diffusion_pytorch_model.safetensors"
    ):
        zoo.load(folder)
    file.write_bytes(content)
    (folder / "model_index.json").write_text(json.dumps(index | {"tokenizer": [None, None]}))
    with pytest.raises(ValueError, match="has no tokenizer; expected vae, unet"):
        zoo.load(folder)
    (folder / "model_index.json").write_text(json.dumps(index | {"unet": ["my_code", "Unet"]}))
    with pytest.raises(ValueError, match="could not be read as a StableDiffusionPipeline"):
        zoo.load(folder)
    (folder / "model_index.json").write_text(json.dumps(index))
    zoo.load(folder)


def test_a_model_of_another_kind_is_not_a_latent_one(tmp_path):
    folder = zoo.save_denoiser(denoiser(), DDPMScheduler(), tmp_path / "ddpm")
    with pytest.raises(ValueError, match="is a Denoiser; expected a StableDiffusionPipeline or DiTPipeline"):
        zoo.latent_diffusion(folder)


def test_a_hub_name_is_taken_from_the_cache_or_refused(saved, tmp_path, monkeypatch):
    import huggingface_hub.constants as constants

    for name, value in (("HF_HUB_CACHE", str(tmp_path)), ("HF_HUB_OFFLINE", True)):
        monkeypatch.setattr(constants, name, value)
    with pytest.raises(FileNotFoundError, match="not in the hub's cache, and could not be downloaded"):
        zoo.latent_diffusion("someone/sd")
    root = tmp_path / "models--someone--sd"
    shutil.copytree(saved / "sd", root / "snapshots/abc")
    (root / "refs").mkdir()
    (root / "refs/main").write_text("abc")
    assert zoo.latent_diffusion("someone/sd").name == "someone/sd"
    for path in (root / "snapshots/abc").glob("*/*.safetensors"):
        path.rename(path.with_suffix(".bin"))
    with pytest.raises(FileNotFoundError, match="has no safetensors weights. If you trust the pickles"):
        zoo.latent_diffusion("someone/sd")


def test_the_tiny_tokenizer_has_a_token_for_every_word():
    ids = tokenizer()("a photo of a smiling, sad person.", add_special_tokens=False).input_ids
    assert len(ids) == 9 and 1 not in ids
