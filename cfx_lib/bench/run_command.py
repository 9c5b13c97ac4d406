"""The command line of the leaderboard: `python -m cfx_lib.bench run`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from cfx_lib.bench import devices, leaderboard, scoreboard
from cfx_lib.bench.scoreboard import Settings
from cfx_lib.worlds import personas

EPILOG = """examples, all of which work offline:
  %(prog)s --methods pgd,svce,references --n 4 --mode fast     a taste, in a minute
  %(prog)s --methods all --n 64 --mode full --out runs/all      the leaderboard; start it again after an interruption
  %(prog)s --methods all --n 64 --cluster local:2               the same in two processes
  %(prog)s --methods all --n 64 --device cuda --cluster local:4 four processes, the GPUs of this machine in turn
  %(prog)s --methods nobody                                     says which methods there are
  %(prog)s --show                                               the leaderboard that is kept
Further methods may be added to a folder later; any other setting needs a folder of its own.
exit codes: 0 measured, 1 a method failed (the table says why) or the disk is full, 2 bad input"""


DEVICES = "cpu, cuda (with --cluster local:N the GPUs in turn, with slurm and tcp the one that a job sees), cuda:K, or auto"


def main(arguments: Sequence[str]) -> int:
    """`python -m cfx_lib.bench run`: make the shards, measure, print; 2 for bad input, 1 for failures."""
    options = _parser().parse_args(arguments)
    try:
        if options.show:
            table, origin = scoreboard.load()
            print(f"{table.markdown()}\n\n*{origin.origin}*")
            return 0
        settings = Settings(
            world=options.world,
            n=leaderboard.MODES[options.mode] if options.n is None else options.n,
            classifier=options.classifier,
            seed=options.seed,
            seeds=options.seeds,
            batch=options.batch,
        )
        options.device = devices.resolved(options.device, options.cluster)
        folder = Path(options.out).expanduser() if options.out else _folder(settings, options.device)
        print(f"folder: {folder}", file=sys.stderr, flush=True)
        table = leaderboard.run(
            options.methods.split(","),
            settings,
            folder,
            threads=options.threads,
            device=options.device,
            cluster=options.cluster,
            retries=options.retries,
            progress=not options.quiet,
        )
        _report(table, options.json)
        if options.mode == "full" and not options.no_save:
            how = {"threads": options.threads, "cluster": options.cluster}
            how |= {} if options.device == "cpu" else {"device": options.device}
            path = scoreboard.save(table, **how)
            print(f"kept in {path.name}", file=sys.stderr)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: finished shards stay, the same command goes on from there", file=sys.stderr)
        return 130
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.strerror or error}", file=sys.stderr)
        return 1
    return int(bool(table.errors))


def _folder(settings: Settings, device: str) -> Path:
    """Where a run goes that names no folder: into the cache, a folder for each choice of settings and kind of device."""
    own = (settings.classifier or "").replace("/", "-").replace(":", "-")
    parts = [settings.world.replace(":", "-"), own, f"n{settings.n}", f"seed{settings.seed}x{settings.seeds}"]
    parts += [] if device == "cpu" else [devices.kind(device)]
    return personas.cache_dir().parent / "runs" / "-".join(part for part in parts if part)


def _report(table: scoreboard.Table, as_json: bool) -> None:
    if as_json:
        print(json.dumps(scoreboard.lines_of(table, everything=True), indent=1, allow_nan=False))
        return
    print(table.markdown())
    for remark in scoreboard.remarks(table):
        print(f"note: {remark}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cfx_lib.bench run",
        description="All methods on the same images: every metric with its interval, in shards that can be interrupted.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--methods", default="all", metavar="A,B,...", help="names, 'all' or 'references' (default: all)")
    add("--world", default="personas", help="personas, or MODULE:CLASS of your own (default: personas)")
    add(
        "--classifier",
        metavar="NAME:ATTRIBUTE",
        help="the explained one (default: the world's, smile-old:smile)",
    )
    add("--mode", choices=tuple(leaderboard.MODES), default="fast", help="full: also kept in data/results/")
    add(
        "--n",
        type=int,
        help=f"images (default: {', '.join(f'{n} in {m}' for m, n in leaderboard.MODES.items())})",
    )
    add("--out", metavar="DIR", help="the run's folder, where a second start goes on (default: in the cache)")
    add("--seed", type=int, default=0, help="the first seed (default 0)")
    add("--seeds", type=int, default=1, help="how many; diversity needs two (default 1)")
    add("--batch", type=int, default=16, help="images in a shard (default 16)")
    add("--threads", type=int, default=1, help="of each shard; the last digits depend on it (default 1)")
    add("--device", default="cpu", metavar="WHERE", help=f"{DEVICES} (default: cpu)")
    add("--cluster", metavar="WHERE", help="local:N, slurm[:N] or tcp://host:port; default: this process")
    add("--retries", type=int, default=2, help="further attempts at a shard that failed (default 2)")
    add("--no-save", action="store_true", help="leave data/results/ as it is")
    add("--show", action="store_true", help="print the leaderboard in data/results/ and run nothing")
    add("--json", action="store_true", help="print the whole table as JSON")
    add("--quiet", action="store_true", help="no progress bars")
    return parser
