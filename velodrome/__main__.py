"""`python -m velodrome`, and the entry point of the command `velodrome`."""

from velodrome.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    raise SystemExit(main())
