"""``python -m cfx_lib.train NAME [--minutes M] [--steps S] [--out FOLDER]``: train a shipped model and write its card."""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import torch

from cfx_lib.train.recipes import RECIPES


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m cfx_lib.train", description=__doc__)
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--steps", type=int, help="number of optimiser steps (default: the recipe's)")
    parser.add_argument(
        "--minutes", type=float, help="cap on the wall time; the learning rate still ends at 0"
    )
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], help="default: the recipe's")
    parser.add_argument(
        "--work", type=Path, default=Path("build/train"), help="checkpoints and logs; a second call goes on"
    )
    parser.add_argument("--out", type=Path, help="where the weights go (default: data/weights/NAME)")
    args = parser.parse_args()
    if args.steps is not None and args.steps < 1:
        parser.error(f"--steps must be at least 1, got {args.steps}")

    torch.manual_seed(0)
    build = RECIPES[args.name]
    changes = {k: v for k in ("steps", "minutes", "precision") if (v := getattr(args, k)) is not None}
    job = build()
    job = dataclasses.replace(job, recipe=dataclasses.replace(job.recipe, **changes))
    try:
        job.ready()
    except (FileNotFoundError, ModuleNotFoundError) as error:
        parser.error(str(error))
    began = time.time()
    job.run(args.name, args.work / args.name, args.out)
    print(f"{args.name}: done in {(time.time() - began) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
