"""A hub cache on disk, filled by hand with tiny checkpoints of the formats that the hub has."""

import shutil

import torch

from cfx_lib.zoo import manifest, readers

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def offline(tmp_path, monkeypatch):
    """A hub cache and a cache of downloads of its own, and no network whatever the machine has: the hub's folder."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("CFX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "hub"


def cached(hub, name, source):
    """Put a folder into the hub's cache as the checkpoint `name` of the manifest: its snapshot."""
    entry = manifest.entry(name)
    return cached_id(hub, entry.where, source, entry.revision)


def cached_id(hub, hub_id, source, revision=None):
    """Put a folder into the hub's cache as a repository at a commit: its snapshot."""
    repository = hub / ("models--" + hub_id.replace("/", "--"))
    snapshot = repository / "snapshots" / (revision or COMMIT)
    shutil.copytree(source, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision or COMMIT)
    return snapshot


def as_pickles(folder):
    """Turn the safetensors of a pipeline into the pickles of older repositories."""
    from safetensors.torch import load_file

    for path in [*folder.glob("*/*.safetensors"), *folder.glob("*.safetensors")]:
        stem = "pytorch_model" if path.parent.name == "text_encoder" else path.stem
        torch.save(load_file(path), path.with_name(f"{stem}.bin"))
        path.unlink()


def downloads(tmp_path, monkeypatch):
    """What saves a checkpoint where the download of a published one would lie, so that it is read whatever its sum."""

    def save(name, value, **format):
        path = tmp_path / "cache" / "checkpoints" / manifest.entry(name).file
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(value, path, **format)
        monkeypatch.setattr(readers, "download", lambda url, sha256, name: path)
        return path

    return save


def size_of(weights):
    """Bytes of a state dict."""
    return sum(value.numel() * value.element_size() for value in weights.values())
