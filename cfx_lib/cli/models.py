"""From names on the command line to a method with its networks."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cfx_lib.cli import inputs
from cfx_lib.cli.choices import Method, preset_of, settings_of

__all__ = [
    "build",
    "classifier_of",
    "default_generator",
    "default_preset",
    "generator_of",
    "image_shape",
    "loading",
    "network",
]

IMAGENET = 1000
WORLD_SIZE = {"personas": 64, "avatars": 64, "fashion": 32}


def network(text: str, one_attribute: bool = True, **options: Any) -> Any:
    """A network by NAME or NAME:ATTRIBUTE. `options`: of `zoo.load`. Raises ValueError, FileNotFoundError."""
    from cfx_lib import zoo

    name, _, attribute = (text, "", "") if Path(text).expanduser().exists() else text.partition(":")
    model = zoo.load(name, **options)
    attributes = getattr(model, "attributes", None)
    if attribute and attributes is None:
        raise ValueError(f"{name} has classes and no attributes: leave out {':' + attribute!r}.")
    if attributes is not None and one_attribute and not attribute:
        said = ", ".join(f"{name}:{one}" for one in attributes)
        raise ValueError(f"{name} is a network of attributes: say which is explained, one of {said}.")
    return model.for_attribute(attribute) if attribute else model


def classifier_of(text: str, **options: Any) -> Any:
    """A classifier by NAME or NAME:ATTRIBUTE. Raises ValueError for another kind of network."""
    model = network(text, **options)
    if not hasattr(model, "predict") or not hasattr(model, "names"):
        raise ValueError(
            f"{text} is a {type(model).__name__}; expected a classifier. `cfx list models` has names."
        )
    return model


def generator_of(method: Method, text: str, **options: Any) -> Any:
    """The diffusion model of a method, in pixels or in latents as it needs one. Raises ValueError for another kind."""
    model, latent = network(text, one_attribute=False, **options), "model" in method.parts
    fits = hasattr(model, "vae") if latent else hasattr(model, "betas")
    if not fits:
        kind = (
            "latent diffusion model (such as avatars/sd)"
            if latent
            else "denoiser of pixels (such as personas/ddpm)"
        )
        raise ValueError(f"{text} is a {type(model).__name__}; {method.cls} needs a {kind}.")
    return model


def world_of(name: str) -> str | None:
    """The shipped world that a shipped classifier belongs to, None for others."""
    world = name.partition("/")[0]
    return world if world in WORLD_SIZE and not Path(name.partition(":")[0]).exists() else None


def default_generator(method: Method, name: str, classifier: Any) -> str:
    """The diffusion model for a classifier where none is named. Raises ValueError where there is no obvious one."""
    latent, world = "model" in method.parts, world_of(name)
    if world is not None and (not latent or world != "fashion"):
        return "avatars/sd" if latent else f"{world}/ddpm"
    if getattr(classifier, "num_classes", None) == IMAGENET:
        return "sd-1.4" if latent else "adm-imagenet-256"
    kind = "a latent diffusion model, for example sd-1.4" if latent else "for example adm-imagenet-256"
    raise ValueError(
        f"say which diffusion model knows such images with --denoiser ({kind}); `cfx list models` and `cfx list published` "
        "have names, a folder or a hub id will do."
    )


def default_preset(method: Method, name: str, generator: Any, classifier: Any) -> str | None:
    """The preset for a classifier where none is named: one tuned on its world, or the paper's; None: the method's defaults."""
    known, world = method.load().PRESETS, world_of(name)
    if world is not None:
        own, attribute = name.partition(":")[0].rpartition("/")[2], name.partition(":")[2]
        factor = {"old": "age"}.get(attribute, attribute)
        cls = "fast/cls" if getattr(generator, "kind", "") == "class" else "fast"
        wanted = [f"fast/{own}", f"fast/{factor}", f"fast/{world}", cls, "fast"]
        return next((preset for preset in wanted if preset in known), None)
    ends = ["/cls", ""] if getattr(generator, "kind", "") == "class" else [""]
    wanted = [f"paper/imagenet{end}" for end in ends]
    return next((p for p in wanted if p in known and _imagenet(classifier)), None)


def _imagenet(classifier: Any) -> bool:
    return getattr(classifier, "num_classes", None) == IMAGENET


def image_shape(generator: Any, classifier: Any, name: str, asked: int | None) -> tuple[int, int]:
    """(size, channels) of the images that the networks take. Raises ValueError where --size does not fit."""
    fixed = getattr(generator, "sample_size", None) or getattr(generator, "image_size", None)
    if asked is not None and asked < 1:
        raise ValueError(f"--size {asked}; expected the side of the square images in pixels.")
    if fixed and asked not in (None, fixed):
        raise ValueError(
            f"--size {asked} does not fit: {generator.name} takes images of {fixed}x{fixed} pixels. Leave --size out, or choose "
            "another --denoiser."
        )
    factor, world = getattr(generator, "factor", 1), world_of(name)
    if asked is not None and asked % factor:
        raise ValueError(f"--size {asked} does not fit: {generator.name} takes sides divisible by {factor}.")
    size = asked or fixed or WORLD_SIZE.get(world) or getattr(generator, "native_size", None)
    size = (
        size
        or getattr(classifier, "size", None)
        or (_timm_config(classifier).get("input_size") or [None])[-1]
    )
    if size is None:
        raise ValueError("the models do not say which size of images they take: give --size.")
    channels = getattr(generator, "image_channels", None) or getattr(generator, "channels", None)
    return int(size), int(channels or (1 if world == "fashion" else 3))


def _timm_config(classifier: Any) -> dict[str, Any]:
    network = getattr(getattr(classifier, "runner", None), "model", None)
    return getattr(network, "pretrained_cfg", None) or {}


# ---------------------------------------------------------------------------------------------------- the method


def build(
    method: Method, options: argparse.Namespace, classifier: Any, generator: Any, preset: str | None
) -> Any:
    """The method with its networks and settings. Raises ValueError, FileNotFoundError."""
    found = {"denoiser": generator, "model": generator, "classifier": classifier}
    if "prompts" in method.parts:
        found["prompts"] = _prompts(options, classifier, generator)
    if "tokens" in method.parts:
        found |= {"predict": classifier.predict, "tokens": _tokens(options)}
    changes = settings_of(method, options.set)
    if options.robust and method.cls != "DVCE":
        raise ValueError(f"--robust is for dvce; for {method.cls} give a robust --classifier instead.")
    if options.robust:
        changes["robust"] = classifier_of(options.robust, **loading(options))
    models = [found[part] for part in method.parts]
    if preset is None:
        return method.load()(*models, **changes)
    preset_of(method, preset)
    return method.load().preset(preset, *models, **changes)


def loading(options: argparse.Namespace) -> dict[str, Any]:
    """The options of `zoo.load` that the command line has."""
    return {
        "device": options.device,
        "dtype": options.dtype,
        "channels_last": True,
        "allow_pickle": options.allow_pickle,
    }


def _prompts(options: argparse.Namespace, classifier: Any, generator: Any) -> Any:
    """Class -> condition for LDCE: what was given, the template, the world's captions, or the classes themselves."""
    from cfx_lib.methods.prompts import class_prompts

    given = inputs.prompts(options.prompt, classifier.names)
    first = [name.split(",")[0].strip() for name in classifier.names]
    if given is not None:
        return {k: int(v) if generator.kind == "class" and v.isdigit() else v for k, v in given.items()}
    if options.template:
        return class_prompts(options.template, first)
    kind, (name, _, attribute) = generator.kind, options.classifier.partition(":")
    if world_of(name) == "personas" and generator.name.startswith("avatars/"):
        from cfx_lib.bench.ldce_faces import prompts_of

        return prompts_of("txt" if kind == "text" else "cls", attribute)
    if kind == "class":
        if generator.num_classes != classifier.num_classes:
            raise ValueError(
                f"{generator.name} has {generator.num_classes} classes, the classifier {classifier.num_classes}: say which belongs "
                "to which with --prompt CLASS=CLASS-OF-THE-MODEL."
            )
        return None
    if _imagenet(classifier):
        return class_prompts("imagenet", first)
    raise ValueError(
        "say what the classes are called with --prompt CLASS=TEXT for each that is asked for, or for all with "
        '--template "a photo of a {}".'
    )


def _tokens(options: argparse.Namespace) -> Any:
    """The words that were learned about the classifier: those of --tokens, else shipped ones."""
    from cfx_lib.methods.time import Tokens

    name = options.tokens or _shipped_tokens(options.classifier)
    if name is None:
        raise ValueError(
            "TIME needs the words that it has learned about the classifier: --tokens FOLDER, as Tokens.save writes it "
            "(cfx_lib.methods.time.Distillation learns them)."
        )
    return Tokens.load(name)


def _shipped_tokens(classifier: str) -> str | None:
    """The name of the shipped words that were learned about this classifier."""
    from cfx_lib.zoo.checksums import data_dir
    from cfx_lib.zoo.files import read_json

    for path in sorted((data_dir() / "weights").glob("*/*/tokens.json")):
        if read_json(path).get("facts", {}).get("black box") == classifier:
            return path.parent.relative_to(data_dir() / "weights").as_posix()
    return None
