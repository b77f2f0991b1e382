"""The command line: `main` runs one command and ends the process with its exit code."""

from pyrobnn.cli.main import main

__all__ = ["main"]
