"""Which class to ask for: the two protocols of LDCE (Sect. 4), by semantic hierarchy and by representation.

Both give every image a few candidates and draw one of them. The draw of an image comes from the seed and the image
itself, as all noise does, so it does not depend on the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cfx_lib.checks import check_images, check_target
from cfx_lib.names import nearest
from cfx_lib.types import Noise, frozen_models
from cfx_lib.worlds import fashion, imagenet_tree, trees

__all__ = ["Tree", "nearest_classes", "representational", "semantic", "tree_of"]

CHUNK = 256
SALT = 0x7A9E  # so that a target is not drawn with the same numbers as a method's first noise


# ---------------------------------------------------------------------------------------------------- hierarchy


@dataclass(frozen=True, eq=False)
class Tree:
    """What is a kind of what: `parents`, kind -> wider kind, and `classes`, label -> (name, narrowest kind)."""

    name: str
    parents: Mapping[str, str] = field(repr=False)
    classes: Mapping[int, tuple[str, str]] = field(repr=False)

    def label_of(self, label: int | str) -> int:
        """The label of a class given by label or by name. Raises ValueError for one that is not in the tree."""
        for index, (name, _) in self.classes.items():
            if label == index or label == name:
                return index
        near = nearest(str(label), [name for name, _ in self.classes.values()])
        some = ", ".join(f"{index} {name}" for index, (name, _) in list(self.classes.items())[:3])
        raise ValueError(
            f"the tree {self.name!r} has no class {label!r}; it has {len(self.classes)} classes ({some}, ...). "
            f"Use another tree, or targets.representational, which needs none.{near}"
        )

    def path(self, label: int | str) -> tuple[str, ...]:
        """The kinds that a class belongs to, the widest first."""
        kinds = [self.classes[self.label_of(label)][1]]
        while kinds[-1] in self.parents:
            kinds.append(self.parents[kinds[-1]])
        return tuple(reversed(kinds))

    def distance(self, a: int | str, b: int | str) -> int:
        """Edges on the shortest path between two classes: 0 the same class, 2 two of one kind, more when farther."""
        if self.label_of(a) == self.label_of(b):
            return 0
        first, second = self.path(a), self.path(b)
        return len(first) + len(second) - 2 * trees.shared(first, second) + 2

    def neighbours(self, label: int | str, k: int = 4) -> list[int]:
        """The `k` closest other classes by the shortest path, ties by label (LDCE: the top 4 of WordNet).

        Raises ValueError for a class that is not in the tree, or a tree with fewer than `k` others.
        """
        own = self.label_of(label)
        if not 1 <= k < len(self.classes):
            raise ValueError(
                f"k = {k}; expected 1 to {len(self.classes) - 1}, the other classes of {self.name!r}."
            )
        others = sorted(other for other in self.classes if other != own)
        return sorted(others, key=lambda other: self.distance(own, other))[:k]

    def siblings(self, label: int | str) -> list[int]:
        """The classes under the narrowest kind that a class shares with any other, by label."""
        return trees.siblings(self.label_of(label), {k: self.path(k) for k in self.classes})


def _edges(
    tree: Mapping[str, Any], parent: str | None = None
) -> Iterator[tuple[str, str | None, tuple[str, ...]]]:
    """(kind, wider kind, classes directly below) of a nested hierarchy such as `fashion.HIERARCHY`."""
    for kind, below in tree.items():
        leaves = below if isinstance(below, tuple) else ()
        yield kind, parent, leaves
        if not leaves:
            yield from _edges(below, kind)


@cache
def tree_of(name: str) -> Tree:
    """The hierarchy of a world: "fashion" (all ten classes) or "imagenet" (the classes of `imagenet_tree` only).

    Raises ValueError for another name.
    """
    if name == "fashion":
        edges = list(_edges(fashion.HIERARCHY))
        kinds = {leaf: kind for kind, _, leaves in edges for leaf in leaves}
        parents = {kind: parent for kind, parent, _ in edges if parent is not None}
        return Tree(name, parents, {k: (leaf, kinds[leaf]) for k, leaf in enumerate(fashion.CLASSES)})
    if name == "imagenet":
        return Tree(name, imagenet_tree.KINDS, imagenet_tree.CLASSES)
    raise ValueError(f"there is no tree {name!r}; expected 'fashion', 'imagenet' or a Tree of your own.")


def semantic(x: Tensor, labels: Tensor, tree: Tree | str, k: int | None = 4, seed: int = 0) -> Tensor:
    """A close class by the hierarchy (LDCE, Sect. 4, protocol a): one of the `k` nearest for each image, drawn evenly.

    `x` (N,C,H,W) in [-1,1] (only the draw depends on it), `labels` (N,) the classes to go away from, `tree` a Tree or
    the name of one. `k=None`: one of the siblings. Returns (N,) long. Raises ValueError.
    """
    check_images(x)
    check_target(labels, len(x))
    tree = tree_of(tree) if isinstance(tree, str) else tree
    wanted = {k_: tree.siblings(k_) if k is None else tree.neighbours(k_, k) for k_ in set(labels.tolist())}
    return _draw(x, [wanted[label] for label in labels.tolist()], seed).to(labels.device)


# ---------------------------------------------------------------------------------------------------- representation


def nearest_classes(
    x: Tensor,
    labels: Tensor,
    network: Callable[[Tensor], Any],
    bank: Tensor,
    bank_labels: Tensor,
    k: int = 5,
    reduce: str = "max",
) -> Tensor:
    """The `k` other classes whose images look most like each image to a network: (N,k) long, the closest first.

    Similarity is the cosine of features (LDCE: of SimSiam). `x` (N,C,H,W) and `bank` (M,C,H,W) in [-1,1], `labels` (N,)
    the classes to go away from, `bank_labels` (M,). A class is as similar as its most similar image of the bank
    (`reduce="max"`), or as its images are on average ("mean"). `network`: images -> (n,d), or feature maps (n,c,h,w), or
    a list whose last entry is taken; maps are averaged over the places. Raises ValueError.
    """
    check_images(x)
    check_images(bank, channels=x.shape[1], name="bank")
    check_target(labels, len(x))
    check_target(bank_labels, len(bank))
    if reduce not in ("max", "mean"):
        raise ValueError(f"reduce = {reduce!r}; expected one of: 'max', 'mean'.")
    classes = bank_labels.unique()
    others = min(int((classes != label).sum()) for label in labels.to(classes.device))
    if not 1 <= k <= others:
        raise ValueError(
            f"k = {k}, but the bank has {others} classes other than that of an image; give more, or 1 <= k <= {others}."
        )
    similarity = _features(network, x) @ _features(network, bank).T  # (N,M)
    per_class = [similarity[:, bank_labels == c] for c in classes]
    scores = torch.stack([s.amax(1) if reduce == "max" else s.mean(1) for s in per_class], 1)  # (N, classes)
    own = labels.to(classes.device)[:, None] == classes
    return classes[
        scores.masked_fill(own, -torch.inf).sort(dim=1, descending=True, stable=True).indices[:, :k]
    ]


def representational(
    x: Tensor,
    labels: Tensor,
    network: Callable[[Tensor], Any],
    bank: Tensor,
    bank_labels: Tensor,
    k: int = 5,
    reduce: str = "max",
    seed: int = 0,
) -> Tensor:
    """A class that looks close to a network (LDCE, Sect. 4, protocol b): one of the `k` of `nearest_classes`, drawn evenly.

    Arguments as there; returns (N,) long. Raises ValueError.
    """
    candidates = nearest_classes(x, labels, network, bank, bank_labels, k, reduce)
    return _draw(x, candidates.tolist(), seed).to(labels.device)


@torch.no_grad()
def _features(network: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    """Features of unit length, (n,d)."""
    parts = []
    with frozen_models(network):
        for chunk in x.split(CHUNK):
            maps = network(chunk)
            last = maps if isinstance(maps, Tensor) else list(maps)[-1]
            parts.append(last.float().flatten(2).mean(2) if last.ndim > 2 else last.float())
    return F.normalize(torch.cat(parts), dim=1)


def _draw(x: Tensor, candidates: Sequence[Sequence[int]], seed: int) -> Tensor:
    """One of the candidates of each image, evenly, by a number that belongs to the seed and the image: (N,) long."""
    u = torch.special.ndtr(Noise(seed ^ SALT).bind(x).draw(x.new_zeros(len(x), 1))).flatten().tolist()
    return torch.tensor([own[min(int(at * len(own)), len(own) - 1)] for at, own in zip(u, candidates)])
