"""Memory that runs out, on the host or on a device, as one line that says what was tried and what to lower."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pyrobnn.errors import OutOfMemory, PyrobnnError

_DEVICE = re.compile(
    r"(cuda|hip|xpu)( error)?: out of memory|mps backend out of memory|cublas_status_alloc_failed", re.IGNORECASE
)
_HOST = re.compile(
    r"defaultcpuallocator|can't allocate memory|not enough memory|bad_alloc|cannot allocate memory", re.IGNORECASE
)
_READER = re.compile(
    r"dataloader worker .*(killed|exited unexpectedly)|out of shared memory", re.IGNORECASE | re.DOTALL
)


def what_ran_out(error: BaseException) -> str | None:
    """`device`, `host`, or `readers` (the processes that read images); None for errors of another kind.

    >>> what_ran_out(MemoryError()), what_ran_out(RuntimeError("shapes do not fit"))
    ('host', None)
    """
    if isinstance(error, PyrobnnError):
        return None
    if isinstance(error, MemoryError):
        return "host"
    if not isinstance(error, RuntimeError):
        return None
    text = str(error)
    if _READER.search(text):
        return "readers"
    if type(error).__name__ == "OutOfMemoryError" or _DEVICE.search(text):
        return "device"
    return "host" if _HOST.search(text) else None


@contextmanager
def within_memory(tried: Callable[[], str], lower: str, kept: str = "") -> Iterator[None]:
    """Turn an error of memory into one that says what was tried.

    Args:
        tried: says it, asked only then.
        lower: what to lower.
        kept: what is left of the work, and how to go on with it.

    Raises:
        OutOfMemory: in place of what torch, NumPy or Python raise.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        where = what_ran_out(error)
        if where is None:
            raise
        if where == "readers":
            message = f"out of memory: a process that reads images was killed during {tried()}: lower --workers"
        else:
            message = f"out of memory on the {where} during {tried()}: lower {lower}"
        raise OutOfMemory(f"{message}{kept and '; '}{kept}") from error
