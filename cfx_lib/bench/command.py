"""The command line of `evaluate`: `python -m cfx_lib.bench evaluate FOLDER`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from cfx_lib.bench import report, saved
from cfx_lib.bench.evaluate import METRICS, measure, select
from cfx_lib.bench.subject import QUICK, ROLES, Subject, prepare
from cfx_lib.metrics._inputs import gather
from cfx_lib.metrics.backbones import name_of


def main(arguments: Sequence[str]) -> int:
    """`python -m cfx_lib.bench evaluate FOLDER`: print the table and write it to files; 2 for bad input."""
    options = _parser().parse_args(arguments)
    folder = Path(options.folder).expanduser()
    out = Path(options.out).expanduser() if options.out else folder / "evaluation"
    try:
        names = select(options.metrics.split(",") if options.metrics else None)
        found = saved.read(folder, skip_corrupt=options.skip_corrupt)
        subject = _subject(options, found)
        out.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = measure(subject, names)
    notes = [*subject.notes, *report.remarks(rows), *(f"left out: {text}" for text in found.skipped)]
    print(report.as_text(rows), *(f"note: {note}" for note in notes), sep="\n", flush=True)
    facts = {"folder": folder.resolve().name, "pairs": len(subject.flipped), "notes": notes}
    pairs = [gather(subject.results, name) for name in ("x", "x_cf")]
    paths = report.save(out, rows, report.provenance(**facts, **_said(options, subject)), pairs)
    print(f"written: {' and '.join(map(str, paths))}")
    return 0


def _subject(options: argparse.Namespace, found: saved.Saved) -> Subject:
    """What was found, with the networks and images that the options name."""
    return prepare(
        found.results,
        classifier=options.classifier and network(options.classifier, one_attribute=True),
        oracle=options.oracle and network(options.oracle),
        networks=dict(map(_role, options.features)),
        reference=options.reference and reference_images(options.reference, found.results[0].x),
        truth=options.truth,
        quick=options.quick,
        exact=options.exact,
        batch_size=options.batch,
        places=found.places,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cfx_lib.bench evaluate",
        description="Every metric for saved explanations, as a table, Parquet and HTML.",
        epilog=f"metrics: {', '.join(METRICS)}",
    )
    add = parser.add_argument
    add("folder", help="what CFResult.save wrote, or a folder of such folders; or x/, x_cf/ and target.csv")
    add("--classifier", metavar="NAME[:ATTRIBUTE]", help="the explained one: shipped, a folder or a hub id")
    add("--oracle", metavar="NAME[:ATTRIBUTE]", help="an independent judge, e.g. personas/oracle:smile")
    add(
        "--features",
        metavar="[ROLE=]NAME",
        action="append",
        default=[],
        help=f"a network to look through; may be repeated. Roles: {', '.join(ROLES)}; without one, realism (FID)",
    )
    add("--metrics", metavar="A,B,...", help="these metrics or properties only (default: all)")
    add(
        "--reference", metavar="IMAGES", help="real images for FID: a folder, or a split such as personas/val"
    )
    add(
        "--truth",
        action="store_true",
        help="render the true counterfactuals of faces of the shipped test set",
    )
    add("--exact", action="store_true", help="ask the classifier at every point of COUT's curves")
    add("--out", metavar="FOLDER", help="where the files go (default: FOLDER/evaluation)")
    add("--skip-corrupt", action="store_true", help="leave out what cannot be read, and list it")
    add("--batch", type=int, default=128, metavar="N", help="images in a batch (default 128)")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help=f"the first {QUICK} pairs only")
    size.add_argument("--full", dest="quick", action="store_false", help="all pairs (default)")
    return parser


def network(text: str, *, one_attribute: bool = False) -> Any:
    """A network by `NAME` or `NAME:attribute`. ValueError or FileNotFoundError if there is none; see `zoo.load`."""
    from cfx_lib import zoo

    name, _, attribute = (text, "", "") if Path(text).expanduser().exists() else text.partition(":")
    model = zoo.load(name, channels_last=True)
    if attribute and not hasattr(model, "for_attribute"):
        raise ValueError(f"{name} has classes and no attributes: leave out {':' + attribute!r}.")
    if one_attribute and not attribute and hasattr(model, "for_attribute"):
        raise ValueError(
            f"{name} is a network of attributes: say which was explained, {name}:{model.attributes[0]}. "
            f"It has {', '.join(model.attributes)}."
        )
    return model.for_attribute(attribute) if attribute else model


def _role(text: str) -> tuple[str, Any]:
    role, equals, name = text.partition("=")
    return (role, network(name)) if equals else ("realism", network(text))


def reference_images(text: str, x: Tensor) -> Tensor:
    """The images of a folder, or of a split of a world ("personas/val"), in the size of x (N,C,H,W)."""
    from cfx_lib.worlds import fashion, folders, personas

    world, _, split = text.partition("/")
    worlds = {
        "personas": lambda: personas.load(split),
        "fashion": lambda: fashion.load(split, channels=x.shape[1]),
    }
    if world in worlds and not Path(text).expanduser().exists():
        return worlds[world]()[0]
    return folders.load(text, size=x.shape[-1], channels=x.shape[1])[0]


def _said(options: argparse.Namespace, subject: Subject) -> dict[str, Any]:
    """What the command was asked for, without the paths of the machine."""
    models = {"classifier": subject.classifier, "oracle": subject.oracle, **subject.networks}
    names = {what: name_of(model) for what, model in models.items() if model is not None}
    reference = options.reference
    if reference and Path(reference).expanduser().exists():
        reference = Path(reference).expanduser().resolve().name
    mode = "quick" if options.quick else "full"
    return {
        "mode": mode,
        "reference": reference,
        "truth": options.truth,
        "exact": options.exact,
        "batch": options.batch,
    } | names
