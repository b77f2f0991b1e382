"""`python -m pyrobnn` and the `pyrobnn` script: the command line, which Ctrl-C may stop from the first import on."""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from pyrobnn.cli.main import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
