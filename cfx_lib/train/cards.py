"""Model cards: test figures, curve and sample grid of a trained model, written beside its weights as README.md."""

from __future__ import annotations

import csv
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from cfx_lib.train import classifier as training
from cfx_lib.worlds import fashion, personas

if TYPE_CHECKING:
    from cfx_lib.train.recipes import Job

GATE_POINTS, GATE_COUNT = 5.0, 18  # marginals within 5 points for at least 18 of the 20 attributes
MARGIN = {"smile": 0.1, "old": 0.05}  # faces nearer to the boundary are ambiguous by construction
PREDICTS = {"epsilon": "the noise", "v_prediction": "the velocity"}

LEARNED_FROM = {
    "personas": "the drawings that it learned from are *Personas by Draftbit*, CC BY 4.0",
    "fashion": "the photographs that it learned from are *Fashion-MNIST*, MIT, copyright 2017 Zalando SE",
}


def classifier_card(name: str, out: Path, job: Job, curve: list[dict]) -> None:
    """Accuracy on the 1,000 test faces, clean and under noise; regression error; the effect of an intervention on glasses."""
    from cfx_lib import zoo

    model = zoo.load(str(out))
    x, factors = personas.load("test")
    names = model.attributes
    logits = _outputs(model, x)
    clear = training.accuracy(logits, factors, names, MARGIN)
    everyone = training.accuracy(logits, factors, names, {})
    noise = 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    noisy = training.accuracy(_outputs(model, x + noise), factors, names, {})
    rows = [[a, _percent(clear[a]), _percent(everyone[a]), _percent(noisy[a])] for a in names]
    means = [float(np.mean(list(d.values()))) for d in (clear, everyone, noisy)]
    rows.append(["mean", *map(_percent, means)])
    text = _table(
        ["attribute", "test accuracy, clear faces", "all test faces", "all, with noise of 0.5"], rows
    )
    text += f"\nClear faces: |smile| > {MARGIN['smile']} for smile, |age - 0.5| > {MARGIN['old']} for old; all faces for the others.\n"
    for k, factor in enumerate(model.regression):
        error = (logits[:, len(names) + k] - torch.from_numpy(factors[factor])).abs().mean()
        text += f"\nMean absolute error of `{factor}`: {float(error):.4f}.\n"
    if "smile" in names:
        text += _glasses(model, factors[factors["closed_eyes"] == "no"][:256])
    figures = {"clear": clear, "all": everyone, "noisy": noisy, "mean_clear": means[0]}
    if "(split gray)" in job.facts["data"]:
        figures["errors"] = _gray_errors(model)
        text += _gray_text(figures["errors"])
    _write(
        name, out, job, curve, f"Attribute classifier ({job.facts['arch'][0]}) on personas.", text, figures
    )


def _glasses(model, factors: personas.Factors) -> str:  # noqa: ANN001
    """How far the answer "smiling" moves when only the glasses are put on or taken off."""
    k = model.attributes.index("smile")
    p = [
        _outputs(model, personas.render(factors.replace(eyewear=e)))[:, k].sigmoid()
        for e in ("none", "eyeglasses")
    ]
    moved, flips = float((p[1] - p[0]).mean()), float(((p[0] > 0.5) != (p[1] > 0.5)).float().mean())
    return (
        f"\nIntervention: putting eyeglasses on {len(factors)} test faces with open eyes, all else equal, moves P(smile) by "
        f"{moved:+.3f} on average and changes the answer for {100 * flips:.1f} % of them.\n"
    )


def _gray_errors(model, n: int = 1000, seed: int = 106) -> dict[str, float]:  # noqa: ANN001
    """Error rates of "old" on n new faces of its own population, and on test faces of either age by what is on the head."""
    own, (_, fair) = personas.sample(n, seed, "gray"), personas.load("test")
    groups = {"its own population": own}
    for age, half in (("old", fair[fair["age"] > 0.5]), ("young", fair[fair["age"] <= 0.5])):
        worn = {head: half["hair"] == value for head, value in (("bald", "bald"), ("with a hat", "beanie"))}
        worn["with hair"] = ~np.isin(half["hair"], ("bald", "beanie"))
        groups |= {f"{age}, {head}": half[rows] for head, rows in worn.items()}
    errors = {}
    for group, faces in groups.items():
        faces = faces[abs(faces["age"] - 0.5) > MARGIN["old"]]
        if len(faces):
            said = _outputs(model, personas.render(faces))[:, model.attributes.index("old")] > 0
            errors[group] = float((said != torch.from_numpy(faces["age"] > 0.5)).float().mean())
    return errors


def _gray_text(errors: dict[str, float]) -> str:
    rows = [[group, _percent(rate)] for group, rate in errors.items()]
    said = "\nMade to be weak: in its training set old people are never bald and wear no hat. The first row is 1,000 new faces of\n"
    said += "that population, the others are test faces of the fair one; clear faces only.\n\n"
    return said + _table(["faces", "error rate of `old`"], rows)


def ddpm_card(name: str, out: Path, job: Job, curve: list[dict], n: int = 500, steps: int = 100) -> None:
    """Attribute marginals of 500 samples against the data's, distance to the nearest training face, a grid of 48."""
    from cfx_lib import zoo

    denoiser, oracle = zoo.load(str(out), dtype="bf16", channels_last=True), zoo.load("personas/oracle")
    samples = sample(denoiser, n, steps)
    read = (_outputs(oracle, samples)[:, : len(oracle.attributes)] > 0).double().mean(0)
    train = personas.load_uint8("train")[0]
    truth = personas.attributes(personas.load_uint8("train")[1]).double().mean(0)
    gap = 100 * (read - truth).abs()
    rows = [
        [a, _percent(t), _percent(r), f"{g:.1f}"]
        for a, t, r, g in zip(oracle.attributes, truth, read, gap, strict=True)
    ]
    within = int((gap <= GATE_POINTS).sum())
    near, reference = nearest(samples, train), nearest(personas.load("test", n)[0], train)
    per_call = seconds_per_call(zoo.load(str(out)), batch=32)
    text = f"The network predicts {PREDICTS[denoiser.prediction_type]} (`{denoiser.prediction_type}`).\n\n"
    text += _table(["attribute", "data", f"{n} samples, read by personas/oracle", "gap (points)"], rows)
    text += (
        f"\n{within} of {len(gap)} marginals within {GATE_POINTS:g} points (gate: {GATE_COUNT}). "
        f"{n} samples have a sampling error of about {100 * 0.5 / n**0.5:.1f} points.\n\n"
        + _distances(near, reference, f"{len(train):,} training faces", "test faces")
        + _speed_and_samples(per_call, steps)
    )
    save_grid(samples[:48], out / "samples.png", columns=12)
    figures = {
        "within": within,
        "gap": gap.tolist(),
        "nearest_min": float(near.min()),
        "nearest_test_min": float(reference.min()),
    }
    _write(
        name,
        out,
        job,
        curve,
        "Unconditional DDPM on personas, 64x64 RGB, a plain `UNet2DModel`.",
        text,
        figures,
    )


def folder_card(
    name: str, out: Path, job: Job, curve: list[dict], images: np.ndarray, n: int = 48, steps: int = 100
) -> None:
    """For a denoiser of one's own images (N, H, W, 3): a grid of 48 samples, their distance to the nearest image."""
    from cfx_lib import zoo

    denoiser = zoo.load(str(out.resolve()), dtype="bf16", channels_last=True)
    samples = sample(denoiser, n, steps)
    near = nearest(samples, images)
    text = (
        f"The network predicts {PREDICTS[denoiser.prediction_type]} (`{denoiser.prediction_type}`).\n\n"
        f"Distance of {n} samples to the nearest of {len(images):,} training images (root mean square on [-1, 1]): "
        f"median {near.median():.4f}, minimum {near.min():.4f}. A copy would be at 0.\n\n"
        f"![{n} samples, {steps} DDPM steps](samples.png)\n"
    )
    save_grid(samples, out / "samples.png", columns=12)
    figures = {"nearest_min": float(near.min()), "nearest_median": float(near.median())}
    size = denoiser.sample_size
    what = f"Unconditional DDPM, {size}x{size} RGB, a plain `UNet2DModel`."
    _write(name, out, job, curve, what, text, figures)


def fashion_ddpm_card(
    name: str, out: Path, job: Job, curve: list[dict], n: int = 500, steps: int = 100
) -> None:
    """Class marginals of 500 samples against the data's uniform ones, distance to the nearest training image, a grid of 48."""
    from cfx_lib import zoo

    denoiser, judge = zoo.load(str(out), dtype="bf16", channels_last=True), zoo.load("fashion/resnet")
    samples = sample(denoiser, n, steps)
    train, test = fashion.load_uint8("train", whole=True)[0], fashion.load("test", n)[0]
    p, p_test = (_outputs(judge, x).softmax(1) for x in (samples, test))
    shares = p.argmax(1).bincount(minlength=len(judge.names)).double() / n
    uniform = 1 / len(judge.names)
    gap = 100 * (shares - uniform).abs()
    rows = [
        [c, _percent(uniform), _percent(s), f"{g:.1f}"]
        for c, s, g in zip(judge.names, shares, gap, strict=True)
    ]
    near, reference = (nearest(x, train, fashion.to_tensor) for x in (samples, test))
    per_call = seconds_per_call(zoo.load(str(out)), batch=32)
    variation = float((shares - uniform).abs().sum() / 2)
    sure, sure_test = (float(q.amax(1).mean()) for q in (p, p_test))
    error = 100 * (uniform * (1 - uniform) / n) ** 0.5
    text = _table(["class", "data", f"{n} samples, read by fashion/resnet", "gap (points)"], rows)
    text += (
        f"\nTotal variation distance to the uniform distribution: {variation:.3f}. A share of {n} samples has a sampling error "
        f"of about {error:.1f} points. Mean confidence of fashion/resnet: {sure:.3f} on the samples, {sure_test:.3f} on test "
        "images.\n\n"
        + _distances(near, reference, f"{len(train):,} training images", "test images")
        + _speed_and_samples(per_call, steps)
    )
    save_grid(samples[:48], out / "samples.png", columns=12, scale=3)
    figures = {
        "shares": shares.tolist(),
        "variation": variation,
        "confidence": sure,
        "nearest_min": float(near.min()),
        "nearest_test_min": float(reference.min()),
    }
    what = (
        "Unconditional DDPM on Fashion-MNIST, 32x32 grey, a plain `UNet2DModel` that predicts the velocity."
    )
    _write(name, out, job, curve, what, text, figures)


def class_card(name: str, out: Path, job: Job, curve: list[dict]) -> None:
    """Accuracy a class on the 10,000 test images, clean and under noise of 0.5."""
    from cfx_lib import zoo

    model = zoo.load(str(out))
    x, labels = fashion.load("test")
    noise = 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    right, noisy = (_outputs(model, z).argmax(1) == labels for z in (x, x + noise))
    rows = [
        [c, _percent(right[labels == k].float().mean()), _percent(noisy[labels == k].float().mean())]
        for k, c in enumerate(model.names)
    ]
    means = [float(r.float().mean()) for r in (right, noisy)]
    rows.append(["all", *map(_percent, means)])
    text = _table(["class", f"accuracy, {len(x):,} test images", "with noise of 0.5"], rows)
    figures = {"accuracy": means[0], "noisy": means[1]}
    _write(
        name,
        out,
        job,
        curve,
        f"Ten-class classifier ({job.facts['arch'][0]}) on Fashion-MNIST.",
        text,
        figures,
    )


def robust_card(name: str, out: Path, job: Job, curve: list[dict]) -> None:
    """Clean accuracy, and robust accuracy at half, once and twice the radius of the training, by foolbox's attacks."""
    from cfx_lib import zoo
    from cfx_lib.train.robust import attack_distance, load_foolbox

    model, evaluation = zoo.load(str(out)), dict(job.facts["evaluation"])
    n, radius = evaluation.pop("n"), job.facts["radius"]
    radii = [radius / 2, radius, 2 * radius]
    rows, figures = [], {"radii": radii}
    for problem, (network, x, labels) in _problems(model).items():
        clean = float((_outputs(network, x).argmax(1) == labels).float().mean())
        distance = attack_distance(network, x[:n], labels[:n], radii, **evaluation)
        robust = [float((distance > r).float().mean()) for r in radii]
        median = float(distance.median())
        rows.append([problem, _percent(clean), *map(_percent, robust), f"{median:.2f}"])
        figures[problem] = {"clean": clean, "robust": robust, "median_distance": median}
    heads = [f"robust, radius {r:g}" for r in radii]
    text = _table(["problem", "clean accuracy", *heads, "median distance of an attack"], rows)
    e = evaluation
    text += (
        "\nRadii and distances are l2 norms of the change on [-1, 1]; on [0, 1] the same changes are half as long "
        f"({', '.join(f'{r / 2:g}' for r in radii)}). Clean accuracy: {_counted(model)}; robust accuracy: the first {n} of them.\n\n"
        f"Attacks (foolbox {load_foolbox().__version__}), worst case an image: DDN with {e['minimal_steps']} steps, then PGD on the "
        f"cross-entropy with {e['steps']} steps of length 2.5 radius / {e['steps']} from {e['restarts']} random starts. They give an "
        "upper bound of the true robust accuracy.\n\n"
        f"Training: images attacked by l2 PGD inside a radius of {radius:g} on [-1, 1] ({radius / 2:g} on [0, 1]), "
        f"{job.facts['attack_steps']} steps from a random start.\n"
    )
    world = "personas" if name.startswith("personas") else "Fashion-MNIST"
    what = f"Adversarially trained classifier ({job.facts['arch'][0]}) on {world}."
    _write(name, out, job, curve, what, text, figures)


def _problems(model) -> dict[str, tuple]:  # noqa: ANN001
    """What a robust model answers: {problem: (network with logits (N,K), test images, labels (N,))}."""
    from cfx_lib import zoo

    if isinstance(model, zoo.ClassClassifier):
        return {f"{model.num_classes} classes": (model, *fashion.load("test"))}
    x, factors = personas.load("test")
    truth, problems = personas.attributes(factors), {}
    for a in model.attributes:
        factor = factors[personas.FACTOR_OF[a]]
        clear = torch.from_numpy(abs(factor - personas.BOUNDARY[a]) > MARGIN[a])
        labels = truth[clear, personas.ATTRIBUTES.index(a)].long()
        problems[a] = (model.for_attribute(a), x[clear], labels)
    return problems


def _counted(model) -> str:  # noqa: ANN001
    if not hasattr(model, "attributes"):
        return "all 10,000 test images"
    return f"the clear ones of 1,000 test faces (|smile| > {MARGIN['smile']}, |age - 0.5| > {MARGIN['old']})"


def _distances(near: Tensor, reference: Tensor, among: str, others: str) -> str:
    return (
        f"Distance to the nearest of {among} (root mean square on [-1, 1]): "
        f"samples: median {near.median():.4f}, minimum {near.min():.4f}; "
        f"{others}: median {reference.median():.4f}, minimum {reference.min():.4f}. A copy would be at 0.\n\n"
    )


def _speed_and_samples(per_call: float, steps: int) -> str:
    return (
        f"One call: {1000 * per_call / 32:.2f} ms an image (fp32, batch 32, {torch.get_num_threads()} threads).\n\n"
        f"![48 samples, {steps} DDPM steps](samples.png)\n"
    )


@torch.no_grad()
def seconds_per_call(denoiser, batch: int) -> float:  # noqa: ANN001
    """Median seconds of ten calls on a batch."""
    x = torch.randn(batch, denoiser.channels, denoiser.sample_size, denoiser.sample_size)
    t, times = torch.zeros(batch, dtype=torch.long), []
    for _ in range(12):
        began = time.perf_counter()
        denoiser(x, t)
        times.append(time.perf_counter() - began)
    return float(np.median(times[2:]))


@torch.no_grad()
def sample(denoiser, n: int, steps: int, batch: int = 50, seed: int = 0) -> Tensor:  # noqa: ANN001
    """Ancestral samples (n, C, H, W) in [-1, 1] with ``steps`` respaced steps."""
    from tqdm.auto import trange

    from cfx_lib.diffusion import Diffusion

    diffusion = Diffusion(denoiser, denoiser.betas, str(steps), denoiser.learned_range)
    generator = torch.Generator().manual_seed(seed)
    shape, out = (denoiser.channels, denoiser.sample_size, denoiser.sample_size), []
    for start in trange(0, n, batch, desc="sampling", leave=False):
        x_t = torch.randn(min(batch, n - start), *shape, generator=generator)
        for i in reversed(range(diffusion.num_steps)):
            x_t = diffusion.ddpm_step(x_t, i, torch.randn(x_t.shape, generator=generator))
        out.append(x_t.clamp(-1, 1))
    return torch.cat(out)


def nearest(x: Tensor, train: np.ndarray, to_tensor: Callable[..., Tensor] = personas.to_tensor) -> Tensor:
    """Root-mean-square distance of each image to its nearest training image, (N,); `to_tensor` reads rows of `train`."""
    flat, best = x.flatten(1), torch.full((len(x),), torch.inf)
    for start in range(0, len(train), 1000):
        best = torch.minimum(
            best, torch.cdist(flat, to_tensor(train[start : start + 1000]).flatten(1)).amin(1)
        )
    return best / flat.shape[1] ** 0.5


def save_grid(x: Tensor, path: Path, columns: int, scale: int = 2) -> None:
    """Write images (N, 1 or 3, H, W) in [-1, 1] as one PNG, enlarged ``scale`` times."""
    from PIL import Image

    pixels = ((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    n, h, w, c = pixels.shape
    rows = -(-n // columns)
    sheet = np.full((rows * columns, h, w, c), 255, np.uint8)
    sheet[:n] = pixels
    sheet = sheet.reshape(rows, columns, h, w, c).swapaxes(1, 2).reshape(rows * h, columns * w, c)
    picture = Image.fromarray(sheet.squeeze(-1) if c == 1 else sheet)
    if c == 3:  # drawings have few colours
        picture = picture.quantize(128, dither=Image.Dither.NONE)
    picture.resize((columns * w * scale, rows * h * scale), Image.NEAREST).save(path, optimize=True)


@torch.no_grad()
def _outputs(model: torch.nn.Module, x: Tensor) -> Tensor:
    return torch.cat([model(part) for part in x.split(100)])


def _percent(share: float) -> str:
    return f"{100 * float(share):.1f} %"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _write(name: str, out: Path, job: Job, curve: list[dict], what: str, text: str, figures: dict) -> None:
    with open(out / "curve.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["step", "loss", "lr", "seconds"], lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" for k, v in row.items()} for row in curve)
    (out / "curve.svg").write_text(_curve_svg(curve), encoding="utf-8")
    (out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    recipe, last = job.recipe, curve[-1]
    minutes = f"{last['seconds'] / 60:.2g}" if last["seconds"] < 600 else f"{last['seconds'] / 60:.0f}"
    command = job.facts.get("command", f"python -m cfx_lib.train {name}")
    if last["step"] < recipe.steps:  # the clock ended it
        command += f" --minutes {minutes}"
    augmentation = job.facts.get("augmentation") or (
        "noise, shifts, colour" if job.facts.get("augmented") else "none"
    )
    rights = job.facts.get("rights") or f"Licence: MIT; {LEARNED_FROM[name.split('/')[0]]}."
    head = (
        f"# {name}\n\n{what}\n\n"
        f"* Data: {job.facts['data']}; augmentation: {augmentation}.\n"
        f"* Command: `{command}` (the recipe is in `{job.facts.get('recipe', 'cfx_lib/train/recipes.py')}`).\n"
        f"* {last['step']:,} steps of {recipe.batch} images in {minutes} minutes, seed {recipe.seed}, "
        f"{recipe.precision}, {job.facts.get('device', f'{platform.machine()} CPU')}.\n"
        "* Weights: exponential moving average, stored as float16 safetensors. "
        f"{rights}\n\n## Test figures\n\n"
    )
    (out / "README.md").write_text(
        head + text + "\n## Training curve\n\n![loss](curve.svg)\n", encoding="utf-8"
    )


def _curve_svg(curve: list[dict]) -> str:
    """The loss over the steps, logarithmic, as a small picture."""
    steps, loss = np.array([c["step"] for c in curve]), np.log10([c["loss"] for c in curve])
    low, high = np.floor(loss.min() * 4) / 4, np.ceil(loss.max() * 4) / 4
    xs, ys = 60 + 520 * steps / steps.max(), 180 - 160 * (loss - low) / max(high - low, 1e-9)
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 600 220" font-family="sans-serif" font-size="12">'
        '<rect width="600" height="220" fill="white"/><path d="M60 20V180H580" fill="none" stroke="black"/>'
        f'<polyline points="{line}" fill="none" stroke="#0072b2" stroke-width="1.5"/>'
        f'<text x="55" y="24" text-anchor="end">{10**high:.3g}</text><text x="55" y="184" text-anchor="end">{10**low:.3g}</text>'
        f'<text x="580" y="198" text-anchor="end">{steps.max()}</text><text x="320" y="212" text-anchor="middle">step</text>'
        '<text x="64" y="16">training loss (log scale)</text></svg>\n'
    )
