"""One training loop for every shipped model: resumable, EMA, mixed precision, one or many processes through accelerate."""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

BatchFn = Callable[[torch.Generator, int], tuple[Tensor, ...]]
LossFn = Callable[..., Tensor]


@dataclass(frozen=True)
class Recipe:
    """Everything that a training is repeated from. ``minutes`` caps the wall time: the learning rate follows whichever of
    steps and minutes is further on, so that a capped training still ends at a learning rate of 0. ``objective`` says
    what is learned from what: a state that was trained with another one is not gone on from."""

    steps: int
    batch: int
    lr: float
    minutes: float = math.inf
    weight_decay: float = 0.0
    warmup: int = 200
    decay_from: float = 0.0  # share of the training after which the cosine decay begins
    ema: float = 0.999
    clip: float = 1.0
    seed: int = 0
    precision: str = "bf16"
    save_every: float = 120.0  # seconds between checkpoints
    cpu: bool = False  # train on the CPU even where there is an accelerator
    objective: str = ""


def learning_rate(recipe: Recipe, step: int, progress: float) -> float:
    """Linear warm-up, constant, then a cosine down to 0; ``progress`` in [0, 1] is the share of the training done."""
    late = max(0.0, (min(progress, 1.0) - recipe.decay_from) / (1.0 - recipe.decay_from))
    return recipe.lr * min(1.0, (step + 1) / recipe.warmup) * 0.5 * (1 + math.cos(math.pi * late))


class Ema:
    """Exponential moving average of the weights, warmed up as min(decay, (1 + n) / (10 + n)); buffers are copied."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay, self.n = copy.deepcopy(model).eval().requires_grad_(False), decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        decay = min(self.decay, (1 + self.n) / (10 + self.n))
        averages = list(self.model.parameters())
        torch._foreach_lerp_(averages, [p.detach() for p in model.parameters()], 1 - decay)
        for kept, new in zip(self.model.buffers(), model.buffers(), strict=True):
            kept.copy_(new)
        self.n += 1


def fit(
    model: nn.Module, batches: BatchFn, loss_fn: LossFn, recipe: Recipe, folder: Path
) -> tuple[nn.Module, list[dict]]:
    """Train ``model`` and return its moving average and the curve ``[{step, loss, lr, seconds}, ...]``.

    The curve has an entry every 50 steps and one for the last step; ``loss`` is the mean since the entry before.
    ``batches(generator, size)`` draws one batch; batch ``k`` comes from a generator seeded by (seed, k), so a run that was
    stopped and goes on from its checkpoint in ``folder`` sees the batches that it would have seen without the stop.
    ``loss_fn(model, generator, *batch)`` gives the mean loss. A model may have ``parameter_groups()``, torch's dictionaries
    of "params" with a "pace" that multiplies their learning rate.
    """
    from accelerate import Accelerator
    from accelerate.utils import broadcast_object_list
    from tqdm.auto import tqdm

    precision = "no" if recipe.precision == "fp32" else recipe.precision
    accelerator = Accelerator(mixed_precision=precision, cpu=recipe.cpu)
    folder.mkdir(parents=True, exist_ok=True)
    model = model.to(accelerator.device)
    ema = Ema(model, recipe.ema)
    groups = model.parameter_groups() if hasattr(model, "parameter_groups") else model.parameters()
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, weight_decay=recipe.weight_decay, betas=(0.9, 0.99))
    step, spent, curve, running = _resume(folder / "state.pt", recipe, model, ema, optimizer)
    model, optimizer = accelerator.prepare(model, optimizer)
    bare, size = accelerator.unwrap_model(model), recipe.batch // accelerator.num_processes
    began, saved = time.monotonic() - spent, time.monotonic()
    bar = tqdm(
        total=recipe.steps if recipe.steps < 10**9 else None,  # None: the clock ends it
        initial=step,
        desc=folder.name,
        disable=not accelerator.is_main_process,
        mininterval=10,
    )

    def progress() -> float:
        share = [max(step / recipe.steps, (time.monotonic() - began) / 60 / recipe.minutes)]
        if accelerator.num_processes > 1:  # each has its own clock: the main one's decides for all
            broadcast_object_list(share)
        return share[0]

    def record() -> None:
        loss, rate = sum(running) / len(running), optimizer.param_groups[0]["lr"]
        curve.append({"step": step, "loss": loss, "lr": rate, "seconds": time.monotonic() - began})
        bar.set_postfix(loss=f"{loss:.4f}")
        running.clear()

    def save() -> None:
        spent = time.monotonic() - began
        _save(folder / "state.pt", recipe, bare, ema, optimizer, step, spent, curve, running)

    model.train()
    done = progress() if curve or running else 0.0  # at least one step, however few the minutes
    while done < 1.0:
        generator = torch.Generator().manual_seed(
            (recipe.seed * 1_000_003 + step) * 64 + accelerator.process_index
        )
        batch = [part.to(accelerator.device) for part in batches(generator, size)]
        rate = learning_rate(recipe, step, done)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("pace", 1.0)
        with accelerator.autocast():
            loss = loss_fn(model, generator, *batch)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(bare)
        running.append(float(loss.detach()))
        step += 1
        bar.update()
        if step % 50 == 0:
            record()
        done = progress()
        if accelerator.is_main_process and time.monotonic() - saved > recipe.save_every:
            save()
            saved = time.monotonic()
    if running:  # the last window, where it is not a whole one
        record()
    bar.close()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        save()
    return ema.model.cpu(), curve


def _save(
    path: Path,
    recipe: Recipe,
    model: nn.Module,
    ema: Ema,
    optimizer,  # noqa: ANN001
    step: int,
    spent: float,
    curve: list,
    running: list,
) -> None:
    """Write the state next to its place and move it there, so that a killed run leaves the old state whole."""
    state = {"model": model.state_dict(), "ema": ema.model.state_dict(), "optimizer": optimizer.state_dict()}
    state |= {
        "recipe": json.dumps(asdict(recipe)),
        "step": step,
        "spent": spent,
        "curve": json.dumps(curve),
        "running": json.dumps(running),
        "ema_n": ema.n,
    }
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    torch.save(state, partial)
    partial.replace(path)


def _resume(
    path: Path,
    recipe: Recipe,
    model: nn.Module,
    ema: Ema,
    optimizer,  # noqa: ANN001
) -> tuple[int, float, list, list]:
    """Fill in models and optimiser; the step, the seconds spent, the curve and the losses since its last entry."""
    if not path.exists():
        return 0, 0.0, [], []
    state = torch.load(path, map_location="cpu", weights_only=True)
    fixed = ("batch", "seed", "objective")
    was, now = ({k: r.get(k, "") for k in fixed} for r in (json.loads(state["recipe"]), asdict(recipe)))
    if was != now:
        raise ValueError(
            f"{path} was trained with {was}, asked for {now}; "
            "delete it to start anew, or use the recipe that it was begun with"
        )
    model.load_state_dict(state["model"])
    ema.model.load_state_dict(state["ema"])
    ema.n = state["ema_n"]
    optimizer.load_state_dict(state["optimizer"])
    curve, running = json.loads(state["curve"]), json.loads(state.get("running", "[]"))
    return state["step"], state["spent"], curve, running
