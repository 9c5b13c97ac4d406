"""The picture of the README: ``python -m cfx_lib.learn.cover`` explains eight test faces and draws them beside the truth."""

from __future__ import annotations

from pathlib import Path

import torch

from cfx_lib import DiME, zoo
from cfx_lib.learn import plots
from cfx_lib.worlds import personas


def draw(path: Path = Path("docs/first_counterfactual.png"), n: int = 4, seed: int = 0) -> Path:
    """Half of the faces are explained for smile (preset fast/masked), half for age (preset fast)."""
    network, denoiser = zoo.load("personas/smile-old"), zoo.load("personas/ddpm")
    x, factors = personas.load("test", 2 * n)
    parts = []
    halves = ((slice(0, n), "smile", "fast/masked"), (slice(n, 2 * n), "old", "fast"))
    for rows, attribute, preset in halves:
        classifier = network.for_attribute(attribute)
        target = 1 - classifier.predict(x[rows])
        result = DiME.preset(preset, denoiser, classifier).explain(x[rows], target, seed=seed)
        truth, *_ = personas.true_counterfactual(
            factors[rows], personas.FACTOR_OF[attribute], classifier, target
        )
        parts.append((x[rows], result.x_cf, truth))
    faces = [torch.cat(column) for column in zip(*parts, strict=True)]
    labels = ("input", "DiME", "true counterfactual")
    figure = plots.image_rows(dict(zip(labels, faces, strict=True)), col_labels=["smile"] * n + ["age"] * n)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    return path


if __name__ == "__main__":
    print(draw())
