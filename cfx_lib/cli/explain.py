"""`cfx explain`: counterfactual explanations of images, as pictures and as JSON."""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

from cfx_lib.cli.choices import METHODS, method_of

__all__ = ["EXAMPLES", "add_to", "run"]

CHUNK = 32  # images at a time for the first answers

EXAMPLES = """\
examples that run offline, on what comes with the code (less than a minute each on two cores):

  Two faces, asked for the other class; pictures and explanation.json in faces/:
    cfx explain --method dime --classifier personas/smile-old:smile --image personas/test --first 2 --out faces

  An ankle boot as a sneaker, on photographs; JSON on standard output:
    cfx explain --method dvce --classifier fashion/robust --image fashion/test --target sneaker --out boot --json

  With words in the place of a pixel model, and a setting of one's own:
    cfx explain --method ldce --classifier personas/smile-old:smile --image personas/test --set start=22 --out words

  An attack, to see what an explanation is not:
    cfx explain --method pgd --classifier personas/brittle:smile --image personas/test --out attack

examples that download published checkpoints when they are first named (gigabytes; a GPU is needed to enjoy them):

    cfx explain --method dvce --classifier resnet50.tv_in1k --robust resnet50-robust-l2-3 --image cat.png --target "tiger cat" --out result
    cfx explain --method ldce --classifier resnet50.tv_in1k --denoiser mini-sd --image cats/ --target 282 --dtype bf16 --out result

how to read the result: NAME.png shows before, after and what changed (grey: nothing). "flipped" means that the classifier now says
the target; whether the change means anything is another question: `cfx bench evaluate OUT --help`. Nothing flipped? Raise the
weight of the class (--set lambda_c=..., C_c for dvce) or the number of steps that are redrawn (--set start=...).
"""


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "explain",
        help="make counterfactual explanations of images",
        description="Change images a little, until the classifier says what is asked for, and show what changed.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    what = parser.add_argument_group("what")
    what.add_argument("--method", required=True, metavar="METHOD", help=f"one of {', '.join(METHODS)}")
    what.add_argument(
        "--classifier",
        required=True,
        metavar="NAME[:ATTRIBUTE]",
        help="the network to be explained: shipped, published, a name of timm, a folder, a hub id",
    )
    what.add_argument(
        "--image", required=True, metavar="FILE", help="an image, a folder of images, or e.g. personas/test"
    )
    what.add_argument("--target", metavar="CLASS", help="number or name; default with two classes: the other")
    what.add_argument("--out", required=True, metavar="DIR", help="where pictures and JSON go")
    how = parser.add_argument_group("how")
    how.add_argument("--denoiser", metavar="NAME", help="the diffusion model (default: one that fits)")
    how.add_argument("--robust", metavar="NAME[:ATTRIBUTE]", help="dvce: the robust classifier of the cone")
    how.add_argument(
        "--prompt", metavar="CLASS=TEXT", action="append", default=[], help="ldce: words for a class"
    )
    how.add_argument("--template", metavar="TEXT", help='ldce: words for all, e.g. "a photo of a {}"')
    how.add_argument("--tokens", metavar="FOLDER", help="time: the words learned about the classifier")
    how.add_argument(
        "--preset", metavar="NAME", help="settings, see cfx list presets (default: one that fits)"
    )
    how.add_argument(
        "--set", metavar="NAME=VALUE", action="append", default=[], help="one setting of the method"
    )
    how.add_argument("--seed", type=int, default=0, help="of the noise (default 0)")
    add("--size", type=int, metavar="PIXELS", help="side of the square images (default: the model's own)")
    add(
        "--first",
        type=int,
        metavar="N",
        help="only the first N images (default: all of a folder, 1 of a split)",
    )
    add(
        "--batch", type=int, metavar="N", help="images at a time (default: all); halved where memory runs out"
    )
    add("--device", help="cpu, cuda, ... (default: cuda if there is one)")
    add("--dtype", default="fp32", choices=("fp32", "bf16"), help="bf16 computes by autocast (default fp32)")
    add("--allow-pickle", action="store_true", help="read weights that are no safetensors, with weights_only")
    add("--skip-unreadable", action="store_true", help="leave out files of a folder that are no images")
    add("--overwrite", action="store_true", help="replace an explanation that is in DIR already")
    add("--json", action="store_true", help="print explanation.json instead of a table")
    add("--traceback", action="store_true", help="show where an error comes from")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Explain; 0 done, 1 failed while computing, 2 bad input."""
    import torch

    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"note: {message}", file=sys.stderr)
            facts = _explain(options)
    except (ConnectionError, torch.OutOfMemoryError, Failed) as error:
        return _complain(options, error, 1)
    except (ValueError, OSError) as error:
        return _complain(options, error, 2)
    except RuntimeError as error:
        return _complain(options, error, 1)
    from cfx_lib.cli.report import as_text

    print(json.dumps(facts, indent=1, ensure_ascii=False) if options.json else as_text(facts, options.out))
    return 0


class Failed(Exception):
    """Something went wrong after the input was found good."""


def _complain(options: argparse.Namespace, error: Exception, code: int) -> int:
    if options.traceback:
        traceback.print_exc()
    print(f"error: {error}", file=sys.stderr)
    return code


def _explain(options: argparse.Namespace) -> dict[str, Any]:
    """Do what was asked for and write it: what explanation.json says. Raises before anything is written for bad input."""
    import torch

    from cfx_lib.batching import explain_in_batches
    from cfx_lib.cli import inputs, models, report

    method = method_of(options.method)
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    _check_device(options.device)
    out = _checked_folder(options)
    loading = models.loading(options)
    classifier = models.classifier_of(options.classifier, **loading)
    generator, name = None, None
    if {"denoiser", "model"} & set(method.parts):
        name = options.denoiser or models.default_generator(method, options.classifier, classifier)
        generator = models.generator_of(method, name, **loading)
    elif options.denoiser:
        raise ValueError(f"{method.cls} uses no diffusion model: leave out --denoiser.")
    preset = options.preset or models.default_preset(method, options.classifier, generator, classifier)
    if method.cls == "DVCE" and not options.robust:
        print(
            "note: without --robust there is no cone, which suits a classifier that is robust itself",
            file=sys.stderr,
        )
    explainer = models.build(method, options, classifier, generator, preset)
    size, channels = models.image_shape(generator, classifier, options.classifier, options.size)
    images = inputs.read(options.image, size, channels, options.first, options.skip_unreadable)
    for line in inputs.describe(images):
        print(f"note: {line}", file=sys.stderr)
    given = torch.cat([classifier.predict(part.to(options.device)).cpu() for part in images.x.split(CHUNK)])
    target = inputs.targets(options.target, classifier.names, given)
    many = {"batch": options.batch, "seed": options.seed, "progress": sys.stderr.isatty()}
    result = explain_in_batches(explainer, images.x, target, **many)
    named = {
        "method": options.method.lower(),
        "preset": preset,
        "classifier": options.classifier,
        "denoiser": name,
    }
    try:
        return report.write(out, options, named, explainer, classifier.names, images, result)
    except OSError as error:
        raise Failed(
            f"the explanation was made, but could not be written to {options.out}: {error}"
        ) from error


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {device}: {reason}. Expected cpu, or cuda where there is one.") from error


def _checked_folder(options: argparse.Namespace) -> Path:
    """The folder to write to, which nothing is done to yet. Raises ValueError for a file, or an explanation that is there."""
    out = Path(options.out).expanduser()
    if out.is_file():
        raise ValueError(
            f"--out {options.out} is a file; expected a folder, which is made where it is missing."
        )
    there = next(place for place in (out, *out.absolute().parents) if place.is_dir())
    if not os.access(there, os.W_OK):
        raise ValueError(
            f"--out {options.out} cannot be written: {there} is read-only. Choose another folder."
        )
    if (out / "explanation.json").is_file() and not options.overwrite:
        raise ValueError(
            f"{options.out} holds an explanation already; choose another --out, or pass --overwrite."
        )
    return out
