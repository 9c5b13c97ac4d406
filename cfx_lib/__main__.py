"""`python -m cfx_lib`: the command `cfx`."""

from cfx_lib.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
