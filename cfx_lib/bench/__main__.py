"""`python -m cfx_lib.bench`: print the speed figures of this machine (`make bench`).

python -m cfx_lib.bench                      everything; this takes long at the paper's settings
python -m cfx_lib.bench notebooks inner      some of: dime, inner, notebooks, precision, scaling
python -m cfx_lib.bench inner --images 64    more faces for the comparison of the inner chains
python -m cfx_lib.bench precision            seconds in fp32, in bf16 and compiled, and what they change
python -m cfx_lib.bench scaling              the leaderboard's shards with one local worker and with two
python -m cfx_lib.bench --save               also keep each table as data/results/bench-NAME.json
python -m cfx_lib.bench study ace            the tables that notebook 03 shows in full mode (also: dime, dvce, hit, ldce, metrics, own, time)
python -m cfx_lib.bench evaluate FOLDER      every metric for explanations that CFResult.save wrote
python -m cfx_lib.bench run --methods all    the leaderboard: all methods on the same images, in shards
python -m cfx_lib.bench claims               the claims of the papers, checked: which are reproduced here
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from cfx_lib.names import nearest

PARTS = {
    "dime": "DiME at the paper's settings (60 of 200 steps)",
    "inner": "the inner chain: cheaper ways to a clean image, against the full one",
    "notebooks": "wall time of the notebooks",
    "precision": "the methods in fp32, in bf16 and compiled, and how far their counterfactuals part",
    "scaling": "a small leaderboard in this process, with one local worker and with two",
}


COMMANDS = ("study", "evaluate", "run", "claims")
STUDIES = ("ace", "dime", "dvce", "hit", "ldce", "metrics", "own", "time")


def main(arguments: list[str] | None = None) -> int:
    """Print the parts that were asked for; 1 when a notebook failed, else 0."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["study"]:
        return study(arguments[1:])
    if arguments[:1] == ["evaluate"]:
        from cfx_lib.bench import command

        return command.main(arguments[1:])
    if arguments[:1] == ["run"]:
        from cfx_lib.bench import run_command

        return run_command.main(arguments[1:])
    if arguments[:1] == ["claims"]:
        from cfx_lib.bench import claims_command

        return claims_command.main(arguments[1:])
    parser = argparse.ArgumentParser(
        prog="python -m cfx_lib.bench", description="Print the speed figures of this machine."
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS)}; default: all")
    parser.add_argument("--batch", type=int, help="images in a batch or shard (default 8; scaling: 4)")
    parser.add_argument(
        "--images",
        type=int,
        help="faces: inner (default 16), precision (8), scaling (32); the last two take even numbers",
    )
    parser.add_argument("--repeats", type=int, help="timed runs: precision (default 3), scaling (1)")
    parser.add_argument("--save", action="store_true", help="keep each table as data/results/bench-NAME.json")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        near = nearest(unknown[0], [*PARTS, *COMMANDS])
        parser.error(f"unknown part {unknown[0]!r}; expected any of: {', '.join(PARTS)}.{near}")
    given = {name: getattr(options, name) for name in ("batch", "images", "repeats")}
    if any(value is not None and value < 1 for value in given.values()):
        parser.error("--batch, --images and --repeats must be at least 1")

    from cfx_lib.bench import results, speed

    makers = _makers(**given)
    print("this machine: " + ", ".join(f"{name} {value}" for name, value in results.machine().items()))
    failed = False
    for part in options.parts or PARTS:
        print(f"\n{PARTS[part]}", flush=True)
        rows = []
        try:
            for row in makers[part]():
                rows.append(row)
                print(("" if len(rows) == 1 else "\n") + speed.as_text(row), flush=True)
        except ValueError as error:
            parser.error(f"{part}: {error}")
        failed |= any(row.get("ended", "well") != "well" for row in rows)
        if options.save:
            print(f"  kept in {results.save(f'bench-{part}', rows, mode='bench').name}")
    return int(failed)


def _makers(
    batch: int | None, images: int | None, repeats: int | None
) -> dict[str, Callable[[], Iterator[dict[str, Any]]]]:
    """How the rows of each part are made; None: the part's own default."""
    from cfx_lib.bench import precision, scaling, speed

    def said(**options: int | None) -> dict[str, Any]:
        return {name: value for name, value in options.items() if value is not None}

    return {
        "dime": lambda: speed.dime_at_paper_settings(**said(images=batch)),
        "inner": lambda: speed.inner_chains(**said(images=images, batch=batch)),
        "notebooks": speed.notebook_times,
        "precision": lambda: precision.precision(**said(images=images, repeats=repeats)),
        "scaling": lambda: scaling.scaling(**said(n=images, batch=batch, repeats=repeats)),
    }


def study(arguments: list[str]) -> int:
    """Make the tables of a study, `python -m cfx_lib.bench study NAME`."""
    parser = argparse.ArgumentParser(
        prog="python -m cfx_lib.bench study",
        description="Make the tables that a notebook shows in full mode.",
    )
    parser.add_argument("name", choices=STUDIES)
    parser.add_argument(
        "--only", action="append", metavar="TABLE", help="this table; may be repeated (default: all)"
    )
    parser.add_argument("--images", type=int, help="faces for every table (default: each table's own number)")
    parser.add_argument("--no-save", action="store_true", help="print only, leave data/results/ as it is")
    options = parser.parse_args(arguments)

    chosen = import_module(f"cfx_lib.bench.{options.name}_study")
    unknown = sorted(set(options.only or ()) - set(chosen.TABLES))
    if unknown:
        parser.error(f"no table {unknown[0]!r}; choose from {', '.join(chosen.TABLES)}")
    if options.images is not None and options.images < 2:
        parser.error("--images must be at least 2, a face of either class")
    chosen.run(options.only, options.images, not options.no_save)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
