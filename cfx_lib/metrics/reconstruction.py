"""Realism by reconstruction: what do autoencoders of the classes make of a counterfactual? IM1 and IM2.

The thesis (2.2.2) says why they are hardly used any more: an autoencoder for every class must be trained and
checked, distances are taken between pixels, and IM1 assumes that the source's autoencoder knew the image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from cfx_lib.metrics._inputs import (
    blank,
    check_batch,
    check_classes,
    gather,
    is_results,
    same_shape,
    successful,
)
from cfx_lib.metrics.backbones import choose, name_of
from cfx_lib.metrics.value import Value, average
from cfx_lib.types import frozen_models

if TYPE_CHECKING:
    from cfx_lib.metrics._inputs import Results

EPSILON = 1e-6  # the papers print the symbol alone


def im1(
    x_cf: Tensor | Results,
    *,
    source: Tensor | None = None,
    target: Tensor | None = None,
    autoencoders: Any = None,
    attribute: str | None = None,
    where: Any = None,
    batch_size: int = 128,
) -> Value:
    """IM1: does the autoencoder of the target class know the counterfactual better than that of the source class?

    Mean over the images of |x_cf - AE_target(x_cf)|^2 / (|x_cf - AE_source(x_cf)|^2 + epsilon) (thesis, Eq. 2.7;
    Van Looveren and Klaise, 2019). Below 1: nearer to the target class. The range of the images cancels but for
    epsilon, 1e-6 on sums of squares of images in [0,1].
    x_cf: (N,C,H,W) in [-1,1], or a CFResult or a list of them. source, target: (N,) long, class before and class
    wanted; by default a CFResult's predictions and targets.
    autoencoders: an object with `reconstruct(x, attribute, classes (N,) long) -> x'` and, for the one of all
    classes, `reconstruct(x)`, on images in [-1,1]; by default the shipped ones. attribute: which of its
    attributes the classes are of; may be left out where it has one or none.
    where: as in `fid`. Interval: bootstrap of images. Nothing selected: undefined (n=0). ValueError for missing
    classes, an unknown attribute, reconstructions of another shape.
    """
    x, keep, autoencoders, attribute = _decoders(x_cf, where, autoencoders, attribute)
    errors = []
    for name, values in (("target", target), ("source", source)):
        classes = classes_of(name, values, x_cf, len(x), _num_classes(autoencoders, attribute))
        again = _reconstruct(autoencoders, x, batch_size, attribute, torch.from_numpy(classes))
        errors.append(_squares(x - again))
    return average(blank(errors[0] / (errors[1] + EPSILON), keep), backbone=name_of(autoencoders))


def im2(
    x_cf: Tensor | Results,
    *,
    target: Tensor | None = None,
    autoencoders: Any = None,
    attribute: str | None = None,
    where: Any = None,
    batch_size: int = 128,
) -> Value:
    """IM2: do the autoencoder of the target class and that of all classes agree on the counterfactual?

    Mean over the images of |AE_target(x_cf) - AE(x_cf)|_2^2 / (|x_cf|_1 + epsilon) (thesis, Eq. 2.8; Van Looveren
    and Klaise, 2019). The thesis prints the denominator |x_c| without saying which norm; it is the 1-norm of the
    paper that it cites, without a square. The score therefore depends on the range of the images, and on where
    their zero lies: on [-1,1] a grey image would have the norm 0. Here images are taken in [0,1], where the norm is
    the sum of the brightness; the score halves for images in half that range, and numbers of other image sizes
    and ranges cannot be compared. Smaller is better.
    Arguments, interval and errors as in `im1`.
    """
    x, keep, autoencoders, attribute = _decoders(x_cf, where, autoencoders, attribute)
    classes = classes_of("target", target, x_cf, len(x), _num_classes(autoencoders, attribute))
    own = _reconstruct(autoencoders, x, batch_size, attribute, torch.from_numpy(classes))
    gap = _squares(own - _reconstruct(autoencoders, x, batch_size))
    brightness = ((x + 1) / 2).abs().flatten(1).sum(1)
    return average(blank(gap / (brightness + EPSILON), keep), backbone=name_of(autoencoders))


def classes_of(name: str, values: Any, given: Any, n: int, num_classes: int | None = None) -> np.ndarray:
    """`source` or `target`, (N,) class indices, as given, else the prediction or the target of the results."""
    if values is None and is_results(given):
        values = gather(given, "target") if name == "target" else gather(given, "logits_before").argmax(1)
    if values is None:
        raise ValueError(f"{name} is missing: pass one class per image, (N,) long, or a CFResult.")
    return check_classes(name, values, n, num_classes).numpy()


def _decoders(
    x_cf: Any, where: Any, autoencoders: Any, attribute: str | None
) -> tuple[Tensor, Tensor, Any, str | None]:
    x = check_batch("x_cf", gather(x_cf, "x_cf") if is_results(x_cf) else x_cf)
    autoencoders = choose(autoencoders, "autoencoders", x)
    known = getattr(autoencoders, "classes", None)
    if attribute is None and known and len(known) == 1:
        attribute = next(iter(known))
    if known and attribute not in known:
        raise ValueError(f"attribute={attribute!r} given, one of {sorted(known)} expected.")
    return x, successful(where, len(x), x_cf), autoencoders, attribute


def _num_classes(autoencoders: Any, attribute: str | None) -> int | None:
    return (getattr(autoencoders, "classes", None) or {}).get(attribute)


def _reconstruct(
    autoencoders: Any, x: Tensor, batch_size: int, attribute: str | None = None, classes: Tensor | None = None
) -> Tensor:
    """Images (N,C,H,W) again in float64 on the CPU: by the autoencoder of each image's class, or by the global one."""
    weight = next(autoencoders.parameters(), None) if isinstance(autoencoders, nn.Module) else None
    device = torch.device("cpu") if weight is None else weight.device
    parts = [x[:0]]
    with frozen_models(autoencoders), torch.no_grad():
        for rows in torch.arange(len(x)).split(batch_size):
            part = x[rows].float().to(device)
            more = () if classes is None else (attribute, classes[rows].to(device))
            parts.append(autoencoders.reconstruct(part, *more).detach().cpu().double())
    return same_shape("autoencoders", torch.cat(parts), x)


def _squares(change: Tensor) -> Tensor:
    """Sum of squares for each image, of images in [0,1]: (N,C,H,W) in [-1,1] -> (N,)."""
    return (change / 2).square().flatten(1).sum(1)
