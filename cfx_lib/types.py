"""The words that everything else speaks: noise, cost, steps and results."""

from __future__ import annotations

import hashlib
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

__all__ = [
    "CFResult",
    "Cost",
    "Counter",
    "Noise",
    "NoiseSource",
    "NoiseTape",
    "Step",
    "frozen_models",
]


# ---------------------------------------------------------------------------------------------------------
# Noise
# ---------------------------------------------------------------------------------------------------------


class NoiseSource(Protocol):
    """What a method asks of its source of randomness: `Noise` samples, `NoiseTape` replays."""

    def bind(self, x: Tensor) -> NoiseSource: ...

    def draw(self, like: Tensor, rows: Tensor | None = None) -> Tensor: ...


class Noise:
    """Gaussian noise in which every image of a batch owns a generator.

    The generator of an image is seeded from `seed` and from the image itself (crc32 of its pixels in 8 bits),
    so the explanation of an image does not depend on which batch it is in, nor on its place there. Two equal
    images in one batch receive equal noise. Draws are made on the CPU in float32 and then moved, so a device
    and a dtype do not change them.

        noise = Noise(seed=0).bind(x)     # once, on the input images
        z = noise.draw(x)                 # one draw for all images
        z = noise.draw(x[rows], rows)     # one draw for some of them; only their generators advance
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = int(seed)
        self._generators: list[torch.Generator] | None = None

    def bind(self, x: Tensor) -> Noise:
        """Return a fresh `Noise` for the images `x` (N,C,H,W) in [-1,1]; `self` is left as it is."""
        bound = Noise(self.seed)
        bound._generators = [_generator(self.seed, image) for image in x]
        return bound

    def draw(self, like: Tensor, rows: Tensor | None = None) -> Tensor:
        """Draw N(0,1) of the shape, device and dtype of `like` (n, ...).

        `rows` (n,) long: which images of the bound batch the rows of `like` belong to; all of them by
        default. Raises ValueError when the source is not bound, or when the number of rows does not fit.
        """
        if self._generators is None:
            raise ValueError(
                "Noise.draw was asked before bind. Call noise = noise.bind(x) on the images first."
            )
        chosen = range(len(self._generators)) if rows is None else rows.tolist()
        if len(like) != len(chosen):
            raise ValueError(
                f"Noise.draw got a batch of {len(like)} for {len(chosen)} bound images; "
                "pass rows= with the positions in the bound batch."
            )
        shape = like.shape[1:]
        draws = [torch.randn(shape, generator=self._generators[n], dtype=torch.float32) for n in chosen]
        if not draws:
            return torch.empty_like(like)
        return torch.stack(draws).to(device=like.device, dtype=like.dtype)

    def __repr__(self) -> str:
        bound = "unbound" if self._generators is None else f"{len(self._generators)} images"
        return f"Noise(seed={self.seed}, {bound})"


def _generator(seed: int, image: Tensor) -> torch.Generator:
    """The generator of one image (C,H,W), seeded from `seed` and the crc32 of the image in 8 bits.

    torch's CPU generator keeps only 32 bits of a seed, hence the hash of the pair.
    """
    pixels = ((image.detach().float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    crc = zlib.crc32(pixels.contiguous().numpy().tobytes())
    digest = hashlib.blake2b(f"{seed}:{crc}".encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


class NoiseTape:
    """Recorded draws, replayed in order: `Noise`'s interface for exact comparisons with recorded runs.

    Each draw has the shape of the whole batch; with `rows` the rows of the next draw are returned.
    """

    def __init__(self, draws: Sequence[Tensor]) -> None:
        self._draws = list(draws)
        self._next = 0

    def bind(self, x: Tensor) -> NoiseTape:
        """Return self: a tape belongs to the batch that it was recorded for."""
        return self

    @property
    def used(self) -> int:
        """How many draws were taken."""
        return self._next

    @property
    def exhausted(self) -> bool:
        """True once every recorded draw was taken."""
        return self._next == len(self._draws)

    def draw(self, like: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return the next draw on the device and in the dtype of `like`.

        Raises IndexError when the tape is used up, ValueError when the shape is not the one of `like`.
        """
        if self.exhausted:
            raise IndexError(
                f"the noise tape is used up: draw {self._next + 1} was asked, "
                f"{len(self._draws)} were recorded. The algorithm asks for more than the recorded run did."
            )
        draw = self._draws[self._next]
        if rows is not None:
            draw = draw[rows.to(draw.device)]
        if draw.shape != like.shape:
            raise ValueError(
                f"draw {self._next} of the noise tape has shape {tuple(draw.shape)}, "
                f"{tuple(like.shape)} was asked. Use the batch that the tape was recorded for."
            )
        self._next += 1
        return draw.to(device=like.device, dtype=like.dtype)

    def __repr__(self) -> str:
        return f"NoiseTape({self._next} of {len(self._draws)} draws used)"


# ---------------------------------------------------------------------------------------------------------
# Cost
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What an explanation cost, summed over its images.

    A network call is counted per image: one call on a batch of 8 counts 8. `seconds` is wall time, `flops`
    are floating point operations (a multiply-add is two), `peak_memory` is bytes on the accelerator; the last
    two are None when they were not measured.
    """

    denoiser_calls: float
    classifier_calls: float
    seconds: float
    flops: float | None = None
    peak_memory: int | None = None

    def per_image(self, n: int) -> Cost:
        """The average over `n` images (peak memory is not divided)."""
        if n < 1:
            raise ValueError(f"Cost.per_image got n = {n}; expected the number of images, at least 1.")
        return Cost(
            self.denoiser_calls / n,
            self.classifier_calls / n,
            self.seconds / n,
            None if self.flops is None else self.flops / n,
            self.peak_memory,
        )

    def __add__(self, other: Cost) -> Cost:
        both = None not in (self.flops, other.flops)
        peaks = [peak for peak in (self.peak_memory, other.peak_memory) if peak is not None]
        return Cost(
            self.denoiser_calls + other.denoiser_calls,
            self.classifier_calls + other.classifier_calls,
            self.seconds + other.seconds,
            self.flops + other.flops if both else None,
            max(peaks) if peaks else None,
        )


class Counter:
    """Counts network calls per image, from its creation to `cost()`.

        counter = Counter()
        denoiser, classifier = counter.denoiser(denoiser), counter.classifier(classifier)
        ...
        counter.cost()

    A wrapped model is called like the model itself; its other attributes are passed through (and not
    counted).
    """

    def __init__(self) -> None:
        self.denoiser_calls = 0
        self.classifier_calls = 0
        self._cuda = torch.cuda.is_available()
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        self._began = time.perf_counter()

    def denoiser(self, model: Callable[..., Any]) -> _Counted:
        """Wrap a denoiser: calls are added to `denoiser_calls`."""
        return _Counted(model, self, "denoiser_calls")

    def classifier(self, model: Callable[..., Any]) -> _Counted:
        """Wrap a classifier (or its `predict`): calls are added to `classifier_calls`."""
        return _Counted(model, self, "classifier_calls")

    def cost(self) -> Cost:
        """The cost so far."""
        peak = None
        if self._cuda:
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated()
        seconds = time.perf_counter() - self._began
        return Cost(self.denoiser_calls, self.classifier_calls, seconds, peak_memory=peak)


class _Counted:
    """A model whose calls are added to one field of a `Counter`, once for every image of the batch."""

    def __init__(self, model: Callable[..., Any], counter: Counter, name: str) -> None:
        self.model, self._counter, self._name = model, counter, name

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        setattr(self._counter, self._name, getattr(self._counter, self._name) + len(x))
        return self.model(x, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "model":  # not set yet (copying, unpickling)
            raise AttributeError(name)
        return getattr(self.model, name)


@contextmanager
def frozen_models(*models: Any) -> Iterator[None]:
    """Put `models` into eval mode without parameter gradients; restore both on exit, also after an exception.

    Anything may be passed: modules are frozen, bound methods (`clf.predict`) freeze the module they belong
    to, other callables and None are left alone.
    """
    modules = []
    for model in models:
        while isinstance(model, _Counted):
            model = model.model
        owner = model if isinstance(model, nn.Module) else getattr(model, "__self__", None)
        if isinstance(owner, nn.Module):
            modules.append(owner)
    training = [(module, module.training) for root in modules for module in root.modules()]
    gradients = [(parameter, parameter.requires_grad) for root in modules for parameter in root.parameters()]
    try:
        for module in modules:
            module.eval()
        for parameter, _ in gradients:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, flag in training:
            module.training = flag
        for parameter, flag in gradients:
            parameter.requires_grad_(flag)


# ---------------------------------------------------------------------------------------------------------
# Results
# ---------------------------------------------------------------------------------------------------------


def _detached(obj: Any, device: str | None = None) -> None:
    """Detach every tensor field of a frozen dataclass in place (and move it to `device`)."""
    for entry in fields(obj):
        value = getattr(obj, entry.name)
        if isinstance(value, Tensor):
            value = value.detach()
            object.__setattr__(obj, entry.name, value if device is None else value.to(device))


@dataclass(frozen=True, repr=False)
class Step:
    """One recorded step of an explanation; its tensors are detached and on the CPU.

    `i` respaced index, `t` original timestep, `z` (n,C,H,W) noisy state at the start of the step, `x_t`
    (n,C,H,W) clean image at which the gradients were taken, `probability` (n,) of the target for `x_t`,
    `class_grad` and `dist_grad` (n,C,H,W) or None, `rows` (n,) positions in the batch of the images that this
    step belongs to (None: all), `attempt` the number of the lambda_c that was being tried.
    """

    i: int
    t: int
    z: Tensor
    x_t: Tensor
    probability: Tensor | None = None
    class_grad: Tensor | None = None
    dist_grad: Tensor | None = None
    rows: Tensor | None = None
    attempt: int = 0

    def __post_init__(self) -> None:
        _detached(self, "cpu")

    def __repr__(self) -> str:
        return f"Step(i={self.i}, t={self.t}, attempt={self.attempt}, {len(self.z)} images)"


@dataclass(frozen=True, repr=False)
class CFResult:
    """A batch of counterfactual explanations.

    `x`, `x_cf` (N,C,H,W) float32 in [-1,1]; `target` (N,) long; `logits_before`, `logits_after` (N,K), or
    None for a method that never sees logits (TIME); `flipped` (N,) bool: the classifier gives `target` for
    `x_cf`; `cost` summed over the batch; `steps` the recorded steps or None; `extra` what only one method
    returns (tensors, numbers, texts, and lists or dicts of those).
    """

    x: Tensor
    x_cf: Tensor
    target: Tensor
    logits_before: Tensor | None
    logits_after: Tensor | None
    flipped: Tensor
    cost: Cost
    steps: tuple[Step, ...] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _detached(self)
        if self.steps is not None:
            object.__setattr__(self, "steps", tuple(self.steps))

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        n, shape = len(self.x), "x".join(str(size) for size in self.x.shape[1:])
        recorded = "" if self.steps is None else f", {len(self.steps)} steps recorded"
        cost = self.cost.per_image(max(n, 1))
        return (
            f"CFResult({n} image{'' if n == 1 else 's'} {shape}, {int(self.flipped.sum())} of {n} flipped, "
            f"an image: {cost.denoiser_calls:.4g} denoiser calls, "
            f"{cost.classifier_calls:.4g} classifier calls, {cost.seconds:.3g} s{recorded})"
        )

    def to(self, device: str | torch.device) -> CFResult:
        """The same result with its images, logits and flags on `device`."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device) for k, v in tensors.items() if isinstance(v, Tensor)})

    def save(self, folder: str | Path) -> Path:
        """Write the result into `folder` as safetensors and `result.json`; return the folder.

        Atomic: the tensors get a name made from their content and `result.json`, which points to them, is
        replaced in one step, so an interrupted save leaves the result that was there before.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, Tensor] = {}
        words = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        words["cost"] = asdict(self.cost)
        if self.steps is not None:
            words["steps"] = [{f.name: getattr(step, f.name) for f in fields(step)} for step in self.steps]
        words = _encode(words, tensors, "")
        partial = folder / f".partial-{os.getpid()}.safetensors"
        save_file(tensors, partial)
        name = f"tensors-{hashlib.sha256(partial.read_bytes()).hexdigest()[:16]}.safetensors"
        os.replace(partial, folder / name)
        text = json.dumps({"format": "cfx_lib.CFResult/1", "tensors": name, "result": words}, indent=1)
        partial = folder / f".partial-{os.getpid()}.json"
        partial.write_text(text + "\n", encoding="utf-8")
        os.replace(partial, folder / "result.json")
        for old in folder.glob("tensors-*.safetensors"):
            if old.name != name:
                old.unlink()
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> CFResult:
        """Read what `save` wrote, on the CPU (tuples inside `extra` come back as lists).

        Raises FileNotFoundError when there is no result, ValueError when it is damaged or of another format.
        """
        path = Path(folder) / "result.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"no saved result in {Path(folder)}: expected {path.name} there, as CFResult.save writes it."
            )
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            known = stored["format"] == "cfx_lib.CFResult/1"
            name = stored["tensors"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a saved CFResult ({error!r}); save the result again.") from error
        if not known:
            raise ValueError(f"{path} has the format {stored['format']!r}, expected 'cfx_lib.CFResult/1'.")
        data = path.parent / name
        if not data.is_file():
            raise FileNotFoundError(f"{path} points to {name}, which is missing; save the result again.")
        digest = hashlib.sha256(data.read_bytes()).hexdigest()[:16]
        if name != f"tensors-{digest}.safetensors":
            raise ValueError(f"{data} is damaged (its checksum is {digest}); save the result again.")
        words = _decode(stored["result"], load_file(data))
        words["cost"] = Cost(**words["cost"])
        if words["steps"] is not None:
            words["steps"] = tuple(Step(**step) for step in words["steps"])
        return cls(**words)


def _encode(value: Any, tensors: dict[str, Tensor], key: str) -> Any:
    """Turn `value` into JSON, with its tensors moved to `tensors` under the path that leads to them."""
    if isinstance(value, Tensor):
        tensors[key] = value.detach().cpu().contiguous().clone()
        return {"__tensor__": key}
    if isinstance(value, dict):
        return {str(k): _encode(v, tensors, f"{key}.{k}" if key else str(k)) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encode(v, tensors, f"{key}.{k}") for k, v in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(value, "tolist"):  # numpy
        return _encode(torch.as_tensor(value) if getattr(value, "ndim", 0) else value.item(), tensors, key)
    raise ValueError(
        f"CFResult.save cannot write {key} of type {type(value).__name__}; "
        "expected tensors, numbers, texts, None, and lists or dicts of those."
    )


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Undo `_encode`."""
    if isinstance(value, dict):
        if value.keys() == {"__tensor__"}:
            return tensors[value["__tensor__"]]
        return {k: _decode(v, tensors) for k, v in value.items()}
    if isinstance(value, list):
        return [_decode(v, tensors) for v in value]
    return value
