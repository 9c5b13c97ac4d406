"""The command line of the ledger: `python -m cfx_lib.bench claims`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from typing import Any

from tqdm.auto import tqdm

from cfx_lib.bench import claims, claims_text, results
from cfx_lib.bench.claims import Claim, Row

EPILOG = """examples, all of which work offline:
  %(prog)s                                       every claim, some tables made here on a few images: minutes
  %(prog)s --only dime                           the claims about DiME
  %(prog)s --only ace.gd-steps,dime.theorem-1    two claims; --list has the names
  %(prog)s --mode full                           every claim from the tables in data/results/; kept as claims.json
  %(prog)s --mode full --again --only ace        the tables of ACE first, by their studies: hours
  %(prog)s --show --markdown                     the ledger that is kept, as a table
A verdict follows from 95 %% intervals alone: reproduced where they are apart as the paper says, not reproduced where they
are apart the other way round, else inconclusive: too few images here, or too small an effect, to tell. Tables that are made
here are compared image by image, where two entries have the same images. What a claim says in brackets after "here" is
not the paper's but ours: how it is measured, a bound, a margin.
exit codes: 0 checked, whatever the verdicts; 1 a check failed with an error; 2 bad input"""


def main(arguments: Sequence[str]) -> int:
    """`python -m cfx_lib.bench claims`: check and print; 1 where a check failed with an error, 2 for bad input."""
    options = _parser().parse_args(arguments)
    try:
        _refuse(options)
        chosen = claims.chosen(_names(options.only))
        if options.list:
            _print_list(chosen, options)
            return 0
        if options.show:
            return _show(chosen, options)
        if options.again:
            _again(chosen)
        return _check(chosen, options)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing was kept", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cfx_lib.bench claims",
        description="The claims of the papers, checked here: verdict, what was measured with its interval, source.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--only",
        action="append",
        metavar="A,B,...",
        help=f"papers ({', '.join(claims.PAPERS)}) or claims; may be repeated (default: all)",
    )
    add(
        "--mode",
        choices=claims.MODES,
        default="fast",
        help="fast (default): some tables are made here on a few images, others read; full: all are read from data/results/",
    )
    add("--again", action="store_true", help="with --mode full: make the tables first, which takes hours")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--list", action="store_true", help="name the claims and check nothing")
    instead.add_argument("--show", action="store_true", help="print the ledger that is kept; check nothing")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--markdown", action="store_true", help="print a Markdown table")
    add("--no-save", action="store_true", help="leave data/results/ as it is")
    add("--quiet", action="store_true", help="no progress bar")
    return parser


def _refuse(options: argparse.Namespace) -> None:
    """ValueError for options that do not go together."""
    if options.again and options.mode != "full":
        raise ValueError("--again makes the tables that full mode reads: add --mode full.")
    if options.again and (options.no_save or options.list or options.show):
        raise ValueError(
            "--again writes tables to data/results/: leave out --no-save, --list and --show, or --again."
        )


def _names(only: Sequence[str] | None) -> list[str] | None:
    """`--only A,B --only C` -> [A, B, C]. ValueError where it names nothing."""
    if only is None:
        return None
    names = [name.strip() for text in only for name in text.split(",") if name.strip()]
    if not names:
        raise ValueError("--only names no claim and no paper: give some, or leave it out for all.")
    return names


# ------------------------------------------------------------------------------------------------ the work


def _check(chosen: Sequence[Claim], options: argparse.Namespace) -> int:
    """Check the claims, print them one by one (or together), keep a full ledger; 1 if a check failed."""
    kept = _kept() if options.mode == "fast" else {}
    plain = not (options.json or options.markdown)
    lines = []
    for claim, row in zip(
        chosen, claims.check(chosen, options.mode, progress=not options.quiet), strict=True
    ):
        lines.append(row)
        if plain:
            tqdm.write(claims_text.block(row, claim.discussion, kept.get(claim.name)) + "\n")
    _report(lines, kept, options)
    if options.mode == "full" and not options.no_save:
        _keep(lines, whole=options.only is None)
    return int(bool(_failed(lines)))


def _failed(lines: Sequence[Row]) -> list[str]:
    return [row["name"] for row in lines if "error" in row]


def _kept() -> dict[str, Row]:
    """The kept ledger, name -> line; empty, with a remark, where there is none."""
    try:
        return {row["name"]: row for row in claims.load().rows}
    except (FileNotFoundError, ValueError) as error:
        print(f"note: no kept ledger to compare with: {error}", file=sys.stderr)
        return {}


def _keep(lines: Sequence[Row], whole: bool) -> None:
    """Keep the ledger as data/results/claims.json, if it is whole and every check could be made."""
    if not whole:
        print("not kept: only the whole ledger is (leave out --only)", file=sys.stderr)
        return
    if failed := _failed(lines):
        print(f"not kept: the check failed of {', '.join(failed)}", file=sys.stderr)
        return
    print(f"kept in {claims.keep(lines).name}", file=sys.stderr)


def _again(chosen: Sequence[Claim]) -> None:
    """Make the tables that the claims read, each by its study."""
    needed = claims.tables(chosen)
    print(f"making {len(needed)} tables, which takes hours: {', '.join(needed)}", file=sys.stderr, flush=True)
    for table in needed:
        study = _study(table)
        if study is None:
            print(f"note: {table} belongs to no study: `{results.command(table)}`", file=sys.stderr)
        else:
            with redirect_stdout(sys.stderr):  # the ledger alone is printed to stdout
                study.run([table], None, True)


def _study(table: str) -> Any:
    """The module that makes a table, cfx_lib.bench.NAME_study; None if there is none."""
    try:
        study = import_module(f"cfx_lib.bench.{table.split('_')[0]}_study")
    except ModuleNotFoundError:
        return None
    return study if table in study.TABLES else None


def _show(chosen: Sequence[Claim], options: argparse.Namespace) -> int:
    """Print the kept ledger, restricted to `--only`."""
    stored = claims.load()
    known = {claim.name: claim for claim in claims.every()}
    wanted = {claim.name for claim in chosen}
    lines = [row for row in stored.rows if options.only is None or row["name"] in wanted]
    if not lines:
        raise ValueError(f"the kept ledger has none of these; make it with `{results.command(claims.NAME)}`.")
    if not (options.json or options.markdown):
        for row in lines:
            claim = known.get(row["name"])
            print(claims_text.block(row, claim.discussion if claim else "") + "\n")
    _report(lines, {}, options)
    if not options.json:
        print(f"{'*' if options.markdown else ''}{stored.origin}{'*' if options.markdown else ''}")
        missing = [name for name in known if name in wanted and name not in {row["name"] for row in lines}]
        if missing:
            print(f"note: not in the kept ledger: {', '.join(missing)}", file=sys.stderr)
    return 0


def _report(lines: Sequence[Row], kept: Mapping[str, Row], options: argparse.Namespace) -> None:
    """All of it as JSON or Markdown, or the counts that end the text."""
    if options.json:
        print(json.dumps(claims_text.as_json(lines, kept), indent=1, allow_nan=False, ensure_ascii=False))
        return
    if options.markdown:
        print(claims_text.as_markdown(lines, kept))
    for text in claims_text.summary(lines, kept):
        print(text + ("\n" if options.markdown else ""))


def _print_list(chosen: Sequence[Claim], options: argparse.Namespace) -> None:
    rows = [{name: getattr(c, name) for name in ("name", "paper", "place", "says")} for c in chosen]
    if options.json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    elif options.markdown:
        print(results.value_table(rows))
    else:
        for row in rows:
            print("\n".join([f"{row['name']} ({row['place']})", *claims_text.wrapped(row["says"])]))
