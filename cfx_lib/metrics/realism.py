"""Realism: could the counterfactuals have come from the data? Where the change should be is not asked here.

The three Fréchet distances compare sets of images through a feature network. FID between the images and their
own counterfactuals rewards doing nothing: a copy of the input has the best score. Split FID compares with other
images, cross-over FID with images of the class that the counterfactual should show. All three depend on how many
images are given: more give a smaller number, so compare at equal n and through the same network.

Their interval is a delete-a-group jackknife (10 groups by the content of the images, Student's t with 9 degrees of
freedom). It aims at the expectation of the metric at this number of images. An ordinary bootstrap repeats images
within a resample, which moves every resampled distance up, and its percentiles then miss. Simulated coverage of a
nominal 95 %, normal and rectified features, 6 to 64 of them, 12 to 1,000 images, independent sets and pairs: FID 91
to 100 % (percentile bootstrap 0 to 93 %), split FID 94 to 97 %, cross-over FID 98 to 99 %. Where it errs it is
mostly too wide: for equal distributions, and where images are hardly more than features.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cfx_lib.metrics._inputs import (
    check_batch,
    check_classes,
    chosen,
    images,
    is_results,
    same_shape,
    successful,
)
from cfx_lib.metrics.backbones import name_of
from cfx_lib.metrics.features import embed, feature_network
from cfx_lib.metrics.frechet import Distances, GroupedStatistics, content_keys, jackknife
from cfx_lib.metrics.reconstruction import classes_of, im1, im2
from cfx_lib.metrics.value import Value

if TYPE_CHECKING:
    from cfx_lib.metrics._inputs import Results

    Images = Tensor | Iterable[Any]
    Features = Callable[[Tensor], Tensor]

__all__ = ["crossover_fid", "fid", "im1", "im2", "sfid"]


def fid(
    real: Images | Results,
    fake: Images | None = None,
    *,
    features: Features | None = None,
    where: Any = None,
    batch_size: int = 128,
) -> Value:
    """Fréchet inception distance between real and generated images (Heusel et al., 2017; LDCE, Eq. 22).

    real, fake: a CFResult or a list of them (all its images x against the x_cf that count, as in the thesis and
    its released code); or two sets, each a tensor (N,C,H,W) in [-1,1] or an iterable of batches (a generator, a
    DataLoader, whose labels are passed over), which is read once, in constant memory. Two tensors of equal length
    are taken for pairs, which the interval leaves out together.
    features: (N,C,H,W) -> (N,D). By default the published Inception, if its weights are on disk (see
    `metrics.features`), else the in-domain stand-in, with whose name the value is printed.
    where: (N,) bool, counterfactuals that count; by default the flipped ones of a CFResult, all of a tensor.
    n: the number of images of the smaller set, on which FID depends. With no more images than features the
    covariances are singular; `Value.method` then says "rank-deficient". Fewer than two images in a set:
    undefined. Interval: see the module. ValueError for images of two sizes, out of range or NaN, an iterable
    without a batch, features that are not (N,D) and finite.
    """
    statistics, network, shape = GroupedStatistics(), features, None
    for is_real, (name, batches) in zip((True, False), _two_sets(real, fake, where)):
        for x, keys in batches:
            shape = shape or x.shape[1:]
            if x.shape[1:] != shape:
                raise ValueError(
                    f"{name}: images {tuple(x.shape[1:])} given after {tuple(shape)}: resize all to one size."
                )
            if len(x):
                network = feature_network(network, x)
                statistics.add(embed(network, x, batch_size), keys, is_real)
    return _value([statistics.distances()], network)


def sfid(
    x: Tensor | Results,
    x_cf: Tensor | None = None,
    *,
    features: Features | None = None,
    where: Any = None,
    splits: int = 10,
    seed: int = 0,
    batch_size: int = 128,
) -> Value:
    """Split FID: counterfactuals of one half against the images of the other (thesis, 4.4.1; LDCE, App. D).

    Both ways, averaged, over `splits` seeded splits. It is not the "spatial" FID of generative modelling.
    x, x_cf: (N,C,H,W) in [-1,1], or a CFResult or a list of them; features: as in `fid`.
    where: as in `fid`. The originals of the other half all count, flipped or not, as in the released code (the
    data set does not depend on the method). Halves get equally many counterfactuals that count and equally many
    others, give or take one, as FID depends on n. A split depends on the content of the images and not on their
    order, and copies of an image (several seeds) stay in one half.
    n: the counterfactuals that count; each distance sees half of them. Fewer than four different images with one:
    undefined. Interval: see the module. ValueError as in `fid`, for different lengths and for splits < 1.
    """
    if splits < 1:
        raise ValueError(f"splits={splits} given, at least 1 expected: the thesis takes 10.")
    given, (x, x_cf) = x, images(x, x_cf)
    keep = successful(where, len(x), given).numpy()
    keys = content_keys(x)
    if len(np.unique(keys[keep])) < 4:
        return _value([None], features)
    network = feature_network(features, x)
    f, f_cf = embed(network, x, batch_size), _embed_rows(network, x_cf, keep, batch_size)
    halves = _halves(keys, keep, splits, seed)
    sides = (side for half in halves for side in (half, ~half))
    parts = [_compare(f, keys, ~side, f_cf, keys, side & keep) for side in sides]
    return _value(parts, network, int(keep.sum()))


def crossover_fid(
    x: Tensor | Results,
    x_cf: Tensor | None = None,
    *,
    groups: tuple[Collection[int], Collection[int]],
    source: Tensor | None = None,
    target: Tensor | None = None,
    real: Tensor | None = None,
    real_classes: Tensor | None = None,
    features: Features | None = None,
    where: Any = None,
    batch_size: int = 128,
) -> Value:
    """Cross-over FID: counterfactuals from one set of classes to the other against real images of that other
    (DVCE, Sect. 4.1 and App. E), both ways, averaged. A copy of the input looks like the wrong classes.

    The paper's Sect. 4.1 says that classes are partitioned into two sets and only counterfactuals that cross
    over are analysed, and Table 1 an "Avg. FID". What they are compared with is inferred here: real images whose
    class is in the set crossed into, in both directions, the two distances averaged.
    x, x_cf: as in `sfid`. groups: two sets of classes without a common one; other classes are left out.
    source, target: (N,) long, class of x and class wanted; by default a CFResult's predictions and targets.
    real (M,C,H,W), real_classes (M,) long: the real images; by default x with their class `source`, which are
    other images than those whose counterfactuals they are compared with. features, where: as in `fid`.
    n: the counterfactuals that cross and count. Fewer than two of them, or of real images, in either direction:
    undefined. Interval: see the module. ValueError as in `fid` and for wrong groups or classes.
    """
    given, (x, x_cf) = x, images(x, x_cf)
    keep = successful(where, len(x), given).numpy()
    source, target = (classes_of(k, v, given, len(x)) for k, v in (("source", source), ("target", target)))
    real, real_classes = _reference(x, source, real, real_classes)
    first, second = _groups(groups)
    ways = (first, second), (second, first)
    crossing = [keep & np.isin(source, a) & np.isin(target, b) for a, b in ways]
    shown = [np.isin(real_classes, b) for _, b in ways]
    if min(mask.sum() for mask in crossing + shown) < 2:
        return _value([None], features)
    network = feature_network(features, x)
    f = _embed_rows(network, real, shown[0] | shown[1], batch_size)
    f_cf = _embed_rows(network, x_cf, crossing[0] | crossing[1], batch_size)
    keys, keys_cf = content_keys(real), content_keys(x)
    parts = [_compare(f, keys, a, f_cf, keys_cf, b) for a, b in zip(shown, crossing)]
    return _value(parts, network, int(sum(mask.sum() for mask in crossing)))


def _two_sets(real: Any, fake: Any, where: Any) -> list[tuple[str, Iterable[tuple[Tensor, np.ndarray]]]]:
    """Name and batches (images, keys) of both sets. Pairs share the keys of the first."""
    names = ("x", "x_cf") if is_results(real) else ("real", "fake")
    if is_results(real):
        given, (real, fake) = real, images(real, fake)
        keep = successful(where, len(fake), given).numpy()
    elif isinstance(real, Tensor) and isinstance(fake, Tensor):
        real, fake = check_batch("real", real), check_batch("fake", fake)
        keep = chosen(where, len(fake)).numpy()
    else:
        return [(name, _stream(name, given, where)) for name, given in zip(names, (real, fake))]
    keys = content_keys(real)
    fake_keys = keys if len(real) == len(fake) else content_keys(fake)
    return [(names[0], [(real, keys)]), (names[1], [(fake[keep], fake_keys[keep])])]


def _stream(name: str, given: Any, where: Any) -> Iterator[tuple[Tensor, np.ndarray]]:
    if hasattr(given, "x_cf") or not isinstance(given, Iterable):
        raise ValueError(
            f"{name}: {type(given).__name__} given, a tensor (N,C,H,W) or an iterable of batches expected: "
            "pass both sets, or a CFResult alone."
        )
    if where is not None:
        raise ValueError("where given with an iterable, None expected: leave the images out of the batches.")
    return _checked_batches(name, [given] if isinstance(given, Tensor) else given)


def _checked_batches(name: str, batches: Iterable[Any]) -> Iterator[tuple[Tensor, np.ndarray]]:
    batch = None
    for batch in batches:
        batch = batch[0] if isinstance(batch, (list, tuple)) and batch else batch  # (images, labels)
        x = check_batch(name, batch)
        yield x, content_keys(x)
    if batch is None:
        raise ValueError(f"{name}: no batch given: an iterator can be read once, make a new one.")


def _halves(keys: np.ndarray, keep: np.ndarray, splits: int, seed: int) -> Iterator[np.ndarray]:
    """Masks (N,) of one half: random, by content, with half of the images that count and half of the others."""
    distinct, image = np.unique(keys, return_inverse=True)
    counts = np.isin(distinct, keys[keep])
    rng = np.random.default_rng(seed)
    for _ in range(splits):
        order = rng.permutation(len(distinct))
        order = order[np.argsort(~counts[order], kind="stable")]
        half = np.zeros(len(distinct), dtype=bool)
        half[order[::2]] = True
        yield half[image]


def _embed_rows(network: Features, x: Tensor, rows: np.ndarray, batch_size: int) -> Tensor:
    """Features (N,D) of some of the images, NaN for the others."""
    found = embed(network, x[rows], batch_size)
    every = found.new_full((len(x), found.shape[1]), torch.nan)
    every[rows] = found
    return every


def _compare(f: Tensor, keys: Any, rows: Any, f_cf: Tensor, keys_cf: Any, rows_cf: Any) -> Distances | None:
    statistics = GroupedStatistics()
    statistics.add(f[rows], keys[rows], real=True)
    statistics.add(f_cf[rows_cf], keys_cf[rows_cf], real=False)
    return statistics.distances()


def _value(parts: list[Distances | None], network: Features | None, n: int | None = None) -> Value:
    name, method = None if network is None else name_of(network), "delete-a-group jackknife"
    if any(part is None for part in parts):
        return Value(np.nan, np.nan, np.nan, 0, name, method=method)
    smallest, dim = min(part.n for part in parts), parts[0].dim
    if smallest <= dim:
        method += f", rank-deficient: {smallest} images for {dim} features"
    return Value(*jackknife(parts), smallest if n is None else n, name, method=method)


def _groups(groups: Any) -> tuple[list[int], list[int]]:
    pair = [sorted({int(c) for c in group}) for group in groups]
    if len(pair) != 2 or not (pair[0] and pair[1]) or set(pair[0]) & set(pair[1]):
        raise ValueError(f"groups={groups} given, two sets of classes without a common one expected.")
    return pair[0], pair[1]


def _reference(x: Tensor, source: np.ndarray, real: Any, real_classes: Any) -> tuple[Tensor, np.ndarray]:
    if (real is None) != (real_classes is None):
        raise ValueError("one of real and real_classes given: pass the real images with their classes.")
    if real is None:
        return x, source
    real = check_batch("real", real)
    same_shape("real", real[:0], x[:0])
    return real, check_classes("real_classes", real_classes, len(real)).numpy()
