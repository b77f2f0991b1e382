"""The command line: `main` runs one command and returns its exit code."""

from pyrobnn.cli.main import main

__all__ = ["main"]
