"""``python -m cfx_lib.train NAME [--minutes M] [--steps S] [--out FOLDER]``: train a shipped model and write its card.

``python -m cfx_lib.train ddpm --folder PATH [--size 64] --out FOLDER``: train a denoiser on the images of a folder.

``python -m cfx_lib.train hit --folder PATH [--arch NAME] --out FOLDER``: train a HiT, or another network of timm, on the
classes of a folder (train/ and val/, a subfolder a class). With several processes or GPUs: ``accelerate launch -m
cfx_lib.train hit ...``.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import torch

from cfx_lib.train.hit_folder import folder_hit
from cfx_lib.train.recipes import RECIPES, Job, folder_ddpm

OWN = ("ddpm", "hit")  # what is trained on images of one's own


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m cfx_lib.train", description=__doc__)
    parser.add_argument("name", choices=[*sorted(RECIPES), *OWN])
    parser.add_argument(
        "--folder", type=Path, help="images to train the denoiser `ddpm` or the network `hit` on"
    )
    parser.add_argument(
        "--size",
        type=int,
        help="side of the images with --folder (default: 64 for ddpm, the network's for hit)",
    )
    parser.add_argument("--arch", help="with `hit`: a name of timm (default: hit_small_patch16_224)")
    parser.add_argument("--epochs", type=float, help="with `hit`: passes over the images (default: 600)")
    parser.add_argument(
        "--batch", type=int, help="with `hit`: images a step, of all processes (default: 256)"
    )
    parser.add_argument(
        "--lr", type=float, help="with `hit`: default 8e-4 for a batch of 4096, less by its root"
    )
    parser.add_argument("--steps", type=int, help="number of optimiser steps (default: the recipe's)")
    parser.add_argument(
        "--minutes", type=float, help="cap on the wall time; the learning rate still ends at 0"
    )
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], help="default: the recipe's")
    parser.add_argument(
        "--work", type=Path, default=Path("build/train"), help="checkpoints and logs; a second call goes on"
    )
    parser.add_argument(
        "--out", type=Path, help="where the weights go (default: data/weights/NAME; none with --folder)"
    )
    args = parser.parse_args()
    if args.steps is not None and args.steps < 1:
        parser.error(f"--steps must be at least 1, got {args.steps}")
    if args.minutes is not None and not args.minutes > 0:
        parser.error(f"--minutes must be more than 0, got {args.minutes:g}")

    torch.manual_seed(0)
    own = args.name in OWN or args.folder is not None or args.size is not None or _hit_options(args)
    job = _folder_job(parser, args) if own else RECIPES[args.name]()
    changes = {k: v for k in ("steps", "minutes", "precision") if (v := getattr(args, k)) is not None}
    job = dataclasses.replace(job, recipe=dataclasses.replace(job.recipe, **changes))
    try:
        job.ready()
    except (FileNotFoundError, ModuleNotFoundError) as error:
        parser.error(str(error))
    began = time.time()
    job.run(args.name, args.work / args.name, args.out)
    print(f"{args.name}: done in {(time.time() - began) / 60:.1f} minutes")


def _hit_options(args: argparse.Namespace) -> dict:
    return {k: v for k in ("arch", "epochs", "batch", "lr") if (v := getattr(args, k)) is not None}


def _folder_job(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Job:
    if args.name not in OWN or args.folder is None:
        parser.error(
            "images of your own are trained on with `ddpm --folder PATH --size S --out FOLDER` or "
            "`hit --folder PATH --arch NAME --out FOLDER`"
        )
    if args.out is None:
        parser.error("--folder needs --out, the folder that the weights go to")
    options = _hit_options(args)
    try:
        if args.name == "hit":
            return folder_hit(args.folder, size=args.size, **options)
        if options:
            parser.error(f"{', '.join(f'--{k}' for k in options)}: for `hit` only")
        return folder_ddpm(args.folder, 64 if args.size is None else args.size)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
