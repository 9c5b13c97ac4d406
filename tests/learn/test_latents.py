"""Latents as pictures, the sampler with guidance, and the cast of `paper` mode on a tiny pipeline."""

import pytest
import torch
from latents import stable_diffusion
from PIL import Image

from cfx_lib import LDCE, zoo
from cfx_lib.learn import latents
from cfx_lib.methods.latent_guidance import ddim_step, ddim_timesteps

TINY = {340: "smiling person", 339: "sad person", 293: "person", 286: "sad person"}


@pytest.fixture(scope="module")
def model():
    return zoo.latent_diffusion(stable_diffusion())


@pytest.fixture
def classifier():
    """Every image is a zebra, more or less."""
    weight = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0))
    likely = torch.zeros(1000)
    likely[340] = 20.0
    return zoo.wrap(lambda x: x.mean((2, 3)) @ weight + likely, 1000)


def images(n=4, size=16):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def follow(uc, c, eta):
    return uc + eta * (c - uc)


class Linear:
    """An autoencoder whose latents are averages of 2x2 pixels, mixed: colours are linear in them."""

    factor = 2

    def encode(self, x):
        mix = torch.tensor([[1.0, 0, 0], [0, 2.0, 0], [0, 0, 1.0], [1.0, 1.0, 1.0]])
        return torch.einsum("ck,nkhw->nchw", mix, torch.nn.functional.avg_pool2d(x, 2))


def test_a_preview_finds_colours_that_are_linear_in_the_latents():
    x = images()
    see = latents.fit_preview(Linear(), x)
    assert see.explained == pytest.approx(1, abs=1e-5)
    colours = torch.nn.functional.avg_pool2d(x, 2)
    torch.testing.assert_close(see(Linear().encode(x)), colours, atol=1e-4, rtol=0)


def test_a_preview_of_a_network_explains_a_part(model):
    see = latents.fit_preview(model, images(8))
    assert 0 < see.explained < 1 and see(model.encode(images(2))).shape == (2, 3, 8, 8)


def test_a_step_leads_from_one_noise_level_to_the_next(model):
    z, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    many, few = latents.noised(model, z, 80, noise), latents.noised(model, z, 20, noise)
    alphas = [float(model.alpha_bar[t]) for t in (80, 20)]
    torch.testing.assert_close(ddim_step(many, noise, *alphas), few, atol=1e-5, rtol=1e-4)


def test_generation_follows_the_text_by_the_given_rule(model):
    wanted = ["a smiling person", "a sad person"]
    free = latents.generate(model, wanted, follow, eta=0.0, steps=4)
    assert free.shape == (2, 3, 16, 16) and free.abs().max() <= 1
    torch.testing.assert_close(free[0], free[1])  # the same noise, and the text does not count
    asked = latents.generate(model, wanted, follow, eta=3.0, steps=4)
    assert not torch.allclose(asked[0], asked[1]) and not torch.allclose(asked[0], free[0])
    torch.testing.assert_close(
        asked[1:], latents.generate(model, wanted[1:], follow, eta=3.0, steps=4), atol=1e-5, rtol=1e-4
    )
    assert latents.generate(model, wanted[:1], follow, steps=4, size=32).shape == (1, 3, 32, 32)
    assert len(ddim_timesteps(len(model.alpha_bar), 4)) == 4


def test_the_steps_of_a_result_can_be_shown(model, classifier):
    x = images(2)
    method = LDCE(
        model, classifier, prompts=dict.fromkeys(range(1000), "a sad person"), steps=10, start=3, gamma=180.0
    )
    result = method.explain(x, torch.tensor([339, 339]), record=True, progress=False)
    shown = latents.with_pictures(result, latents.fit_preview(model, x))
    assert [s.z.shape for s in shown.steps] == [(2, 3, 8, 8)] * 3 and result.steps[0].z.shape == (2, 4, 8, 8)


def test_the_cast_of_paper_mode_is_drawn_by_the_model(monkeypatch, model, classifier):
    monkeypatch.setattr(latents, "NAMES", TINY)
    monkeypatch.setattr(latents, "PAIRS", {340: 339, 293: 286})
    cast = latents.photographs(2, model.pipeline, classifier, classifier, size=32, device="cpu", steps=3)
    assert cast.x.shape == (2, 3, 32, 32) and cast.target.tolist() == [339, 286]
    assert cast.prompts == {339: "a photo of a sad person.", 286: "a photo of a sad person."}
    assert cast.region.shape == (1, 1, 16, 16) and 0 < cast.region.float().mean() < 1
    method = LDCE.preset(
        cast.preset, cast.model, cast.classifier, prompts=cast.prompts, steps=10, start=2, **cast.settings
    )
    result = method.explain(cast.x, cast.target, progress=False)
    assert torch.isfinite(result.x_cf).all() and result.x_cf.shape == cast.x.shape


def test_the_cast_of_paper_mode_from_a_folder(monkeypatch, tmp_path, model, classifier):
    for k in range(3):
        Image.new("RGB", (40, 30), (40 * k, 90, 120)).save(tmp_path / f"{k}.png")
    cast = latents.photographs(
        2, model.pipeline, classifier, classifier, folder=str(tmp_path), size=16, device="cpu"
    )
    assert (
        len(cast.x) == 2
        and cast.target.tolist() == [339, 339]
        and cast.prompts == {339: "a photo of a sorrel."}
    )
    stranger = zoo.wrap(lambda x: x.mean((2, 3)) @ torch.zeros(3, 1000) + torch.eye(1000)[999], 1000)
    with pytest.raises(ValueError, match="none of the 3 images"):
        latents.photographs(
            2, model.pipeline, stranger, classifier, folder=str(tmp_path), size=16, device="cpu"
        )
