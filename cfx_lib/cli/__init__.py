"""The command line: `cfx explain`, `cfx list`, `cfx bench`; also `python -m cfx_lib`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

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

        return bench(given[1:])
    try:
        options = parser().parse_args(given)
    except SystemExit as stop:  # argparse: 0 after --help, 2 after an error that it has printed
        return int(stop.code or 0)
    if options.command is None:
        print(ABOUT + "\n" + EXIT)
        return 2
    return options.run(options)


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
