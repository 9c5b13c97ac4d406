"""`python -m cfx_lib.zoo checksums`: write data/SHA256SUMS again; `check`: compare; `names`: what is shipped."""

from __future__ import annotations

import argparse
import sys

from cfx_lib.zoo.checksums import data_dir, listed, update, verify


def main(argv: list[str] | None = None) -> int:
    """Run one maintenance command and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m cfx_lib.zoo", description=__doc__)
    parser.add_argument("command", choices=["checksums", "check", "names"])
    command = parser.parse_args(argv).command
    if command == "checksums":
        path, count = update()
        print(f"{path}: {count} files")
    elif command == "names":
        from cfx_lib.zoo.registry import names

        print("\n".join(names()))
    else:
        bad = 0
        for name in listed():
            try:
                verify(data_dir() / name)
            except (FileNotFoundError, ValueError) as error:
                bad += 1
                print(error, file=sys.stderr)
        print(f"{len(listed())} files checked, {bad} wrong")
        return int(bad > 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
