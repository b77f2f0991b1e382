"""Puts the commands together and turns errors into one line and an exit code.

A command imports what it needs when it runs: torch and Pyro take seconds to load, and `--help` or a mistyped
option needs neither.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated, Any

import typer
from rich.markup import escape

import pyrobnn
from pyrobnn.cli.compress import compress
from pyrobnn.cli.console import err_console, out_console
from pyrobnn.cli.evaluate import evaluate
from pyrobnn.cli.export import export
from pyrobnn.cli.groups import groups
from pyrobnn.cli.inspect import inspect
from pyrobnn.cli.methods import methods
from pyrobnn.errors import PyrobnnError
from pyrobnn.io import launch

# torch's notes on how several processes could be quicker are nothing that a user can follow; set before torch is loaded.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

app = typer.Typer(name="pyrobnn", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for command in (compress, groups, evaluate, inspect, export, methods):
    app.command()(command)

# Typer may carry click inside or beside it; its own errors lead to the base class in both cases.
_UsageError: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


def _version(asked: bool) -> None:
    if asked:
        out_console.print(f"pyrobnn {pyrobnn.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Bayesian compression of CNNs: a posterior in, a truly smaller network out."""


def main(arguments: list[str] | None = None) -> None:
    """Entry point: one clear line and exit code 2 for bad input, 130 for Ctrl-C."""
    warnings.showwarning = _one_line_warning
    try:
        code = app(args=arguments, standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt) as error:
        _stopped(launch.says(error), arguments)
    except PyrobnnError as error:
        _fail(str(error), launch.says(error))
    except _UsageError as error:
        _fail(error.format_message(), launch.says(error))
    except OSError as error:  # no permission, no space, a file where a directory should be
        _fail(f"{error.filename or 'a file'}: {error.strerror or error}", launch.says(error))
    except MemoryError as error:
        _fail("out of memory: use smaller batches or images, or a machine with more", launch.says(error))
    except Exception as error:
        library = type(error).__module__.partition(".")[0]
        if library not in ("h5netcdf", "h5py", "pickle", "_pickle", "safetensors", "zipfile", "zlib"):
            raise  # an error of ours, whose place should be seen
        _fail(f"a file cannot be read or written ({library}: {error})", launch.says(error))
    else:
        if code == 130:  # typer turns Ctrl-C into this
            _stopped(launch.rank() == 0, arguments)
        sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, says: bool = True) -> None:
    """Of several processes one `says` it."""
    if says:
        err_console.print("error: " + escape(" ".join(message.split())), soft_wrap=True)
    sys.exit(2)


def _stopped(says: bool, arguments: list[str] | None) -> None:
    """Only a compression has anything to go on with."""
    given = sys.argv[1:] if arguments is None else arguments
    if says:
        resumable = given[:1] == ["compress"]
        err_console.print("stopped" + ("; run the same command with --resume to go on" if resumable else ""))
    sys.exit(130)


def _one_line_warning(message: Any, *args: Any, **kwargs: Any) -> None:
    err_console.print("warning: " + escape(" ".join(str(message).split())), soft_wrap=True)
