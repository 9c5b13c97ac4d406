"""The command line: `cfx explain`, `cfx list`, `cfx bench`; also `python -m cfx_lib`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["main"]

ABOUT = """\
Explain an image classifier: what is the smallest believable change of this image after which it says something else?

  cfx explain    make counterfactual explanations of images, as pictures and as JSON
  cfx list       methods, shipped models, presets, published checkpoints
  cfx bench      measure: metrics of saved explanations, studies, speed

`cfx COMMAND --help` explains one with examples. The examples run offline, on models and images that come with the code.
"""
EXIT = """\
exit codes: 0 done (also where no image changed its class: the output says so), 1 it failed while computing, 2 bad input
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 done, 1 failed while computing, 2 bad input (said on standard error)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["bench"]:  # has commands and help of its own
        from cfx_lib.bench.__main__ import main as bench

        return _ended(lambda: bench(given[1:]))
    options = _ended(lambda: parser().parse_args(given))
    if isinstance(options, int):
        return options
    if options.command is None:
        print(ABOUT + "\n" + EXIT)
        return 2
    try:
        code = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    return code


def _ended(run: Callable[[], Any]) -> Any:
    """What it returned; the exit code where argparse ended it: 0 after --help, 2 after an error that it has printed."""
    try:
        return run()
    except SystemExit as stop:
        return int(stop.code or 0)


def parser() -> argparse.ArgumentParser:
    """The parser of all commands but `bench`."""
    from cfx_lib.cli import explain, listing

    top = argparse.ArgumentParser(
        prog="cfx", description=ABOUT, epilog=EXIT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("--version", action="version", version=_version())
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    for add in (explain.add_to, listing.add_to):
        add(commands)
    commands.add_parser("bench", help="metrics of saved explanations, studies, speed (cfx bench --help)")
    return top


def _version() -> str:
    from cfx_lib import __version__

    return f"cfx {__version__}"
