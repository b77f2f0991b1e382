"""Where the commands print: results on stdout, everything else on stderr."""

from __future__ import annotations

from rich.console import Console

from pyrobnn.io import launch

out_console = Console(highlight=False, quiet=launch.rank() > 0)  # of several processes the first one speaks
err_console = Console(stderr=True, highlight=False)
