"""What a launcher such as `torchrun` tells a process through its environment; imports nothing heavy."""

from __future__ import annotations

import os


def rank() -> int:
    """Number of this process among all of the run, from 0."""
    return _number("RANK", 0)


def world_size() -> int:
    """Processes of the run, on all machines."""
    return max(1, _number("WORLD_SIZE", 1))


def local_rank() -> int:
    """Number of this process among those on this machine, from 0: that of its accelerator."""
    return _number("LOCAL_RANK", rank())


def on_this_machine() -> int:
    """Processes of the run on this machine, which share its memory and processors."""
    return max(1, _number("LOCAL_WORLD_SIZE", world_size()))


def says(error: BaseException) -> bool:
    """Whether this process is the one that tells the user of an error: one does (see `pyrobnn.io.processes`)."""
    told = getattr(error, "told_by_another", None)
    return rank() == 0 if told is None else not told


def _number(name: str, otherwise: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else otherwise
