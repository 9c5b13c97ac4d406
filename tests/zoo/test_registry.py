"""zoo.load: shipped names, folders, hub ids, and everything that can be wrong with a checkpoint."""

import json
import os
import pickle
import shutil
import subprocess
import sys

import pytest
import torch
from diffusers import (
    DDPMPipeline,
    DDPMScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    ScoreSdeVeScheduler,
    UNet2DModel,
)

from cfx_lib import zoo
from cfx_lib.diffusion import Diffusion
from cfx_lib.zoo import checksums, files, registry
from cfx_lib.zoo.__main__ import main
from cfx_lib.zoo.denoiser import betas_of

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
UNET = dict(
    sample_size=16,
    in_channels=3,
    block_out_channels=(8, 16),
    layers_per_block=1,
    norm_num_groups=4,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=8,
)


def tiny_unet(out_channels=3, seed=0, **changes):
    torch.manual_seed(seed)
    return UNet2DModel(**{**UNET, "out_channels": out_channels, **changes}).eval()


@pytest.fixture(scope="module")
def unet():
    return tiny_unet()


@pytest.fixture(scope="module")
def saved(unet, tmp_path_factory):
    return zoo.save_denoiser(unet, DDPMScheduler(), tmp_path_factory.mktemp("saved") / "ddpm", half=False)


@pytest.fixture
def folder(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "ddpm")
    return tmp_path / "ddpm"


@pytest.fixture
def data(saved, tmp_path, monkeypatch):
    """A data folder with one shipped model, personas/ddpm, and its checksums."""
    root = tmp_path / "data"
    shutil.copytree(saved, root / "weights/personas/ddpm")
    monkeypatch.setenv("CFX_DATA", str(root))
    assert main(["checksums"]) == 0
    return root


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """A hub cache of its own, and no network whatever the machine has."""
    import huggingface_hub.constants as constants

    for name, value in (("HF_HUB_CACHE", str(tmp_path / "hub")), ("HF_HUB_OFFLINE", True)):
        monkeypatch.setattr(constants, name, value)
    return tmp_path / "hub"


def cached(hub, hub_id, source):
    """Put a folder in a hub cache as the hub client does."""
    repository = hub / ("models--" + hub_id.replace("/", "--"))
    snapshot = repository / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(source, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    return snapshot


@pytest.fixture
def x():
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


# ---------------------------------------------------------------------------------------------------- what works


def test_denoiser_from_a_folder(folder, unet, x):
    model = zoo.load(folder)
    t = torch.tensor([0, 500, 999])
    assert torch.equal(model(x, t), unet(x, t).sample)
    assert torch.equal(model(x, 7), unet(x, 7).sample)
    assert (model.channels, model.sample_size, model.learned_range) == (3, 16, False)
    assert model.betas.dtype == torch.float64 and len(model.betas) == 1000
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert "3x16x16" in repr(model) and "T=1000" in repr(model)


def test_gradient_reaches_the_input(folder, x):
    x = x.requires_grad_()
    zoo.load(folder)(x, 5).sum().backward()
    assert x.grad.abs().sum() > 0


def test_learned_range_and_half(tmp_path, x):
    unet = tiny_unet(out_channels=6)
    before = {k: v.clone() for k, v in unet.state_dict().items()}
    zoo.save_denoiser(unet, DDPMScheduler(), tmp_path / "m")
    assert all(torch.equal(v, before[k]) for k, v in unet.state_dict().items())  # the live model is untouched
    model = zoo.load(tmp_path / "m")
    out = model(x, 5)
    assert model.learned_range and out.shape == (3, 6, 16, 16)
    stored = files.read_weights(tmp_path / "m" / WEIGHTS)
    assert {v.dtype for v in stored.values() if v.ndim >= 2} == {torch.float16}
    assert {v.dtype for v in stored.values() if v.ndim < 2} == {torch.float32}
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert torch.allclose(out, unet(x, 5).sample, atol=1e-2)
    assert (tmp_path / "m" / WEIGHTS).stat().st_mode & 0o044 == 0o044  # not for its owner only


def test_diffusers_reads_what_we_save(folder, x):
    pipeline = DDPMPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    assert torch.equal(pipeline.unet(x, 5).sample, zoo.load(folder)(x, 5))
    assert pipeline.scheduler.config.beta_schedule == "linear"


def test_we_read_what_diffusers_saves(tmp_path, unet, x):
    DDPMPipeline(unet=unet, scheduler=DDPMScheduler()).save_pretrained(tmp_path / "m")
    assert torch.equal(zoo.load(tmp_path / "m")(x, 5), unet(x, 5).sample)


def test_root_layout_with_old_attention_names(folder, tmp_path, unet, x):
    """google/ddpm-celebahq-256 keeps the UNet's files at its root, with the attention of an old diffusers."""
    root = tmp_path / "root"
    shutil.copytree(folder / "unet", root)
    shutil.copy(folder / "scheduler" / "scheduler_config.json", root)
    files.write_json(
        root / "model_index.json", {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}
    )
    weights = files.read_weights(root / "diffusion_pytorch_model.safetensors")
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    for new, name in old.items():
        weights = {k.replace(new, name): v for k, v in weights.items()}
    assert any(".query." in k for k in weights)
    files.write_weights(root / "diffusion_pytorch_model.safetensors", weights, half=False)
    assert torch.equal(zoo.load(root)(x, 5), unet(x, 5).sample)


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_betas_agree_with_diffusers(schedule):
    scheduler = DDPMScheduler(beta_schedule=schedule, num_train_timesteps=400)
    betas = betas_of(scheduler.config)
    assert betas.dtype == torch.float64
    assert torch.allclose(betas.float(), scheduler.betas, rtol=1e-4, atol=1e-7)


def test_betas_refused():
    with pytest.raises(ValueError, match="prediction_type='sample'; expected 'epsilon' or 'v_prediction'"):
        betas_of({"prediction_type": "sample"})
    with pytest.raises(ValueError, match="beta_schedule='sigmoid'; expected 'linear'"):
        betas_of({"beta_schedule": "sigmoid"})
    assert betas_of({"trained_betas": [0.1, 0.2]}).tolist() == [0.1, 0.2]
    for scheduler in (ScoreSdeVeScheduler(), EDMEulerScheduler()):
        name = type(scheduler).__name__
        with pytest.raises(ValueError, match=f"{name}, which has no betas; expected a DDPM-like scheduler"):
            betas_of({"_class_name": name, **scheduler.config})
    assert len(betas_of(EulerDiscreteScheduler(sigma_max=80.0).config)) == 1000, "has betas all the same"


@pytest.mark.parametrize("channels", [3, 6])
def test_velocity_becomes_epsilon(tmp_path, x, channels):
    """Our x0_hat from the converted output is the one that diffusers computes from the velocity; variances stay as they are."""
    unet, scheduler = (
        tiny_unet(out_channels=channels),
        DDPMScheduler(prediction_type="v_prediction", clip_sample=False),
    )
    model = zoo.load(zoo.save_denoiser(unet, scheduler, tmp_path / "m", half=False))
    for t in (0, 500, 999):
        out, eps = unet(x, t).sample, model(x, t)
        diffusion = Diffusion(model, model.betas, "1000", learned_range=channels == 6)
        theirs = scheduler.step(out[:, :3], t, x).pred_original_sample
        scale = theirs.abs().max()
        assert torch.allclose(diffusion.x0_from_eps(x, t, eps[:, :3]) / scale, theirs / scale, atol=2e-4)
        assert torch.equal(eps[:, 3:], out[:, 3:])


def test_bf16_and_channels_last(folder, x):
    plain, fast = zoo.load(folder), zoo.load(folder, dtype="bf16", channels_last=True)
    out = fast(x, 5)
    assert out.dtype == torch.float32 and out.is_contiguous()
    assert all(p.dtype == torch.float32 for p in fast.parameters())
    assert torch.allclose(out, plain(x, 5), atol=0.1) and not torch.equal(out, plain(x, 5))
    assert torch.allclose(zoo.load(folder, channels_last=True)(x, 5), plain(x, 5), atol=1e-5)
    with pytest.raises(ValueError, match="dtype is 'fp8'; expected one of"):
        zoo.load(folder, dtype="fp8")


def test_compile_is_opt_in(folder, x, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    zoo.load(folder)
    assert not compiled
    model = zoo.load(folder, compile=True)
    assert compiled == [model.unet] and torch.equal(model(x, 5), zoo.load(folder)(x, 5))


def test_import_is_cheap():
    code = "import sys, cfx_lib.zoo; print([m for m in ('torch', 'diffusers', 'timm') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "diffusers" not in done.stdout and "timm" not in done.stdout
    with pytest.raises(AttributeError, match="has no 'lode'; it has"):
        zoo.lode  # noqa: B018
    assert "load" in dir(zoo)


# ---------------------------------------------------------------------------------------------------- shipped


def test_shipped_model_is_loaded_and_checked_once(data, x, monkeypatch):
    hashed = []
    original = checksums.sha256
    monkeypatch.setattr(checksums, "sha256", lambda path: hashed.append(path) or original(path))
    assert zoo.names() == ["personas/ddpm"]
    first = zoo.load("personas/ddpm")
    assert first.name == "personas/ddpm" and len(hashed) == 4
    assert torch.equal(zoo.load("personas/ddpm")(x, 5), first(x, 5)) and len(hashed) == 4


def test_altered_shipped_weights(data):
    path = data / "weights/personas/ddpm" / WEIGHTS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # one bit: still a readable file
    path.write_bytes(content)
    with pytest.raises(ValueError, match="was altered or damaged.*sha256.*git checkout") as error:
        zoo.load("personas/ddpm")
    assert str(path) in str(error.value)
    assert main(["check"]) == 1
    assert main(["checksums"]) == 0 and main(["check"]) == 0
    zoo.load("personas/ddpm")


def test_altered_shipped_configuration(data):
    path = data / "weights/personas/ddpm/scheduler/scheduler_config.json"
    path.write_text(path.read_text().replace("0.02", "0.03"))
    with pytest.raises(ValueError, match="scheduler_config.json was altered"):
        zoo.load("personas/ddpm")


def test_missing_shipped_files(data):
    (data / "weights/personas/ddpm" / WEIGHTS).unlink()
    with pytest.raises(
        FileNotFoundError, match="shipped file .* is missing.*git checkout -- data/weights/personas/ddpm"
    ):
        zoo.load("personas/ddpm")
    shutil.rmtree(data / "weights/personas/ddpm")
    assert zoo.names() == []
    with pytest.raises(FileNotFoundError, match="is missing. Restore it"):
        zoo.load("personas/ddpm")


def test_unlisted_files_and_sums(data):
    shutil.copytree(data / "weights/personas/ddpm", data / "weights/personas/mine")
    with pytest.raises(ValueError, match="is not listed in .*cfx_lib.zoo checksums"):
        zoo.load("personas/mine")
    zoo.load(data / "weights/personas/mine")  # as a folder it needs no sum
    (data / "SHA256SUMS").write_text("not a sum\n")
    with pytest.raises(ValueError, match="SHA256SUMS, line 1: 'not a sum' is not"):
        zoo.load("personas/ddpm")
    (data / "SHA256SUMS").unlink()
    with pytest.raises(FileNotFoundError, match="SHA256SUMS is missing, so shipped files cannot be checked"):
        zoo.load("personas/ddpm")


def test_no_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CFX_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="nowhere does not exist.*CFX_DATA.*pip install -e"):
        zoo.names()


def test_sums_of_the_repository_are_complete(monkeypatch):
    monkeypatch.delenv("CFX_DATA", raising=False)
    root = checksums.data_dir()
    shipped = [p for f in checksums.FOLDERS for p in (root / f).rglob("*") if p.is_file()]
    assert {p.relative_to(root).as_posix() for p in shipped} == set(checksums.listed())
    for path in shipped:
        checksums.verify(path)


def test_names_command(data, capsys):
    main(["names"])
    assert capsys.readouterr().out == "personas/ddpm\n"


@pytest.mark.parametrize("name", ["ddpm", "smile-old", "brittle", "smile-shortcut", "oracle"])
def test_models_of_the_personas(name, monkeypatch):
    """What the repository ships is there, unaltered, and takes the faces of its world."""
    monkeypatch.delenv("CFX_DATA", raising=False)
    assert f"personas/{name}" in zoo.names()
    model, faces = zoo.load(f"personas/{name}"), torch.zeros(1, 3, 64, 64)
    if name == "ddpm":
        assert (model.channels, model.sample_size, model.learned_range, len(model.betas)) == (
            3,
            64,
            False,
            1000,
        )
        assert model(faces, 10).shape == faces.shape
    elif name == "oracle":
        assert len(model.attributes) == 20 and set(model.regression) == {"smile", "age"}
        assert model.attributes_of(faces).shape == (1, 20) and model.regress(faces)["age"].shape == (1,)
    else:
        assert model.attributes == ("smile", "old")
        assert model.for_attribute("smile")(faces).shape == (1, 2)


# ---------------------------------------------------------------------------------------------------- unknown


@pytest.mark.parametrize("name", ["personas/ddmp", "personas/dppm-64"])
def test_unknown_name_offers_the_nearest(data, name):
    with pytest.raises(FileNotFoundError, match=f"no model '{name}'.*Did you mean 'personas/ddpm'"):
        zoo.load(name)


@pytest.mark.parametrize("name", ["ddpm", "./here", "/no/such/folder", "a/b/c", "bad name/of it", ""])
def test_no_such_model(data, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name == "":
        name = "./"
        (tmp_path / "empty").mkdir()
        monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(
        FileNotFoundError, match="expected a shipped name|is not a model folder .it holds nothing"
    ):
        zoo.load(name)


def test_folder_of_another_kind(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(
        FileNotFoundError, match="is not a model folder .it holds notes.txt.; expected model_index.json"
    ):
        zoo.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BertModel"]}))
    with pytest.raises(
        ValueError, match="describes BertModel; expected a UNet2DModel or a timm classifier.*zoo.wrap"
    ):
        zoo.load(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline"}))
    with pytest.raises(ValueError, match="holds a StableDiffusionXLPipeline; zoo.load takes a DDPMPipeline"):
        zoo.load(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "ScoreSdeVePipeline"}))
    with pytest.raises(ValueError, match="holds a ScoreSdeVePipeline; zoo.load takes a DDPMPipeline"):
        zoo.load(tmp_path)


def test_single_files(tmp_path):
    for name, message in (
        ("celeba.pt", "single pickle file.*unet_from_openai"),
        ("a.safetensors", "expected the folder"),
    ):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(ValueError, match=message):
            zoo.load(tmp_path / name)


# ---------------------------------------------------------------------------------------------------- damaged


def test_truncated_weights(folder):
    path = folder / WEIGHTS
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with pytest.raises(ValueError, match="is damaged: it has .* its header says .*100 bytes are missing"):
        zoo.load(folder)
    path.write_bytes(content + b"xx")
    with pytest.raises(ValueError, match="2 bytes too many"):
        zoo.load(folder)
    path.write_bytes(content[:200])
    with pytest.raises(ValueError, match="damaged: it ends inside its header"):
        zoo.load(folder)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="is empty .0 bytes."):
        zoo.load(folder)
    path.write_bytes(content[:8] + b"{" + b"\xff" * (len(content) - 9))
    with pytest.raises(ValueError, match="header is unreadable"):
        zoo.load(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
            "Git LFS pointer.*git lfs pull",
        ),
        (b"<!DOCTYPE html><html>404</html>", "web page.*download the file again"),
        (b'{"a": 1}' * 9, "JSON text"),
        (b"PK\x03\x04" + b"\0" * 60, "a pickle written by torch.save"),
        (pickle.dumps({"a": list(range(99))}), "is a pickle.*allow_pickle"),
        (b"\x1f\x8b" + b"\0" * 60, "gzip"),
        (b"\0" * 64, "not a safetensors file"),
    ],
)
def test_another_format(folder, content, message):
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        zoo.load(folder)
    assert str(folder / WEIGHTS) in str(error.value)


def test_missing_parts(folder):
    (folder / WEIGHTS).rename(folder / "elsewhere")
    with pytest.raises(
        FileNotFoundError, match="holds no weights; expected diffusion_pytorch_model.safetensors"
    ):
        zoo.load(folder)
    (folder / "scheduler/scheduler_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="scheduler_config.json is missing"):
        zoo.load(folder)
    (folder / "unet/config.json").unlink()
    with pytest.raises(FileNotFoundError, match="config.json is missing"):
        zoo.load(folder)


def test_broken_configuration(folder):
    path = folder / "unet/config.json"
    whole = path.read_text()
    path.write_text(whole[:50])
    with pytest.raises(ValueError, match="not valid JSON .line"):
        zoo.load(folder)
    path.write_text("[1]")
    with pytest.raises(ValueError, match="holds a JSON list; expected an object"):
        zoo.load(folder)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not text"):
        zoo.load(folder)
    path.write_text(whole.replace("UNet2DModel", "UNet2DConditionModel"))
    with pytest.raises(ValueError, match="describes a UNet2DConditionModel; expected a UNet2DModel"):
        zoo.load(folder)
    path.write_text(whole.replace('"AttnDownBlock2D"', '"NoSuchBlock"'))
    with pytest.raises(ValueError, match="not a configuration of a UNet2DModel.*NoSuchBlock"):
        zoo.load(folder)


def test_architecture_mismatch(folder):
    path = folder / "unet/config.json"
    config = json.loads(path.read_text())
    files.write_json(path, {**config, "block_out_channels": [8, 24]})
    with pytest.raises(ValueError, match="does not fit the architecture.*of another shape .*instead of"):
        zoo.load(folder)
    files.write_json(path, {**config, "layers_per_block": 2})
    with pytest.raises(ValueError, match="tensors missing .* more"):
        zoo.load(folder)
    files.write_json(path, {**config, "down_block_types": ["DownBlock2D", "DownBlock2D"]})
    with pytest.raises(ValueError, match="tensors unexpected .*attentions"):
        zoo.load(folder)


def test_weights_with_nan(folder):
    weights = files.read_weights(folder / WEIGHTS)
    weights["conv_in.bias"][0] = float("nan")
    from safetensors.torch import save_file

    save_file(weights, folder / WEIGHTS)
    with pytest.raises(ValueError, match="conv_in.bias holds NaN or infinite values"):
        zoo.load(folder)


# ---------------------------------------------------------------------------------------------------- pickles


def test_pickle_needs_permission(folder, unet, x):
    weights = files.read_weights(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    path = folder / "unet/diffusion_pytorch_model.bin"
    torch.save(weights, path)
    with pytest.raises(ValueError, match="legacy pickle, which can run code.*allow_pickle=True"):
        zoo.load(folder)
    assert torch.equal(zoo.load(folder, allow_pickle=True)(x, 5), unet(x, 5).sample)
    torch.save({"state_dict": weights, "epoch": 3}, path)
    assert torch.equal(zoo.load(folder, allow_pickle=True)(x, 5), unet(x, 5).sample)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="holds a list that is not a state dict"):
        zoo.load(folder, allow_pickle=True)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="damaged or holds more than tensors"):
        zoo.load(folder, allow_pickle=True)


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("hacked",)


def test_pickle_runs_no_code(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (folder / WEIGHTS).unlink()
    torch.save({"a": Malicious()}, folder / "unet/diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match="weights_only=True"):
        zoo.load(folder, allow_pickle=True)
    assert not (tmp_path / "hacked").exists()


# ---------------------------------------------------------------------------------------------------- the hub


def test_hub_from_the_cache(data, offline, folder, unet, x):
    cached(offline, "someone/ddpm-tiny", folder)
    model = zoo.load("someone/ddpm-tiny")
    assert model.name == "someone/ddpm-tiny" and torch.equal(model(x, 5), unet(x, 5).sample)


def test_hub_unreachable(data, offline):
    with pytest.raises(
        FileNotFoundError, match="not in the hub's cache, and could not be downloaded.*network"
    ):
        zoo.load("someone/no-such-model")


def test_hub_with_a_pickle_only(data, offline, folder, unet, x):
    weights = files.read_weights(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save(weights, folder / "unet/diffusion_pytorch_model.bin")
    cached(offline, "someone/old", folder)
    with pytest.raises(ValueError, match="legacy pickle"):
        zoo.load("someone/old")
    assert torch.equal(zoo.load("someone/old", allow_pickle=True)(x, 5), unet(x, 5).sample)


def test_hub_without_weights(data, offline, folder):
    (folder / WEIGHTS).unlink()
    cached(offline, "someone/empty", folder)
    with pytest.raises(FileNotFoundError, match="has no safetensors weights.*allow_pickle=True"):
        zoo.load("someone/empty")


def test_hub_model_of_another_kind(data, offline, tmp_path):
    (tmp_path / "sd").mkdir()
    (tmp_path / "sd/model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline"}))
    cached(offline, "someone/sd", tmp_path / "sd")
    with pytest.raises(ValueError, match="holds a StableDiffusionXLPipeline"):
        zoo.load("someone/sd")


# ---------------------------------------------------------------------------------------------------- writing


def test_interrupted_save_keeps_the_old_weights(folder, monkeypatch):
    import safetensors.torch

    before = (folder / WEIGHTS).read_bytes()

    def dies(tensors, path, metadata=None):
        path.write_bytes(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(safetensors.torch, "save_file", dies)
    with pytest.raises(KeyboardInterrupt):
        zoo.save_denoiser(tiny_unet(seed=1), DDPMScheduler(), folder)
    assert (folder / WEIGHTS).read_bytes() == before
    assert not [p for p in folder.rglob("*") if "partial" in p.name]


def test_save_refuses_what_cannot_be_stored(tmp_path):
    unet = tiny_unet()
    unet.conv_in.weight.data[0] = 1e6
    with pytest.raises(ValueError, match="exceeds float16 .* half=False"):
        zoo.save_denoiser(unet, DDPMScheduler(), tmp_path / "m")
    zoo.save_denoiser(unet, DDPMScheduler(), tmp_path / "m", half=False)
    unet.conv_in.weight.data[0] = float("inf")
    with pytest.raises(ValueError, match="holds NaN or infinite values; nothing was written"):
        zoo.save_denoiser(unet, DDPMScheduler(), tmp_path / "n")
    assert not list((tmp_path / "n").rglob("*.safetensors"))


def test_registry_kinds(folder):
    assert registry.kind_of(folder) == "denoiser"
    (folder / "model_index.json").unlink()
    assert registry.kind_of(folder) == "denoiser"
