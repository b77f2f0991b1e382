"""How much memory is free for images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from pyrobnn.io.launch import on_this_machine
from pyrobnn.io.processes import current

#: Share of the free memory that the images of a data set may take; more than that is streamed.
MEMORY_SHARE = 0.25
_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def free_memory() -> int:
    """Bytes that this process may still take: of the machine, or of its control group if that has less."""
    found = [_of_the_machine()]
    for limit, used in _CGROUPS:
        try:
            found.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return max(0, min(found))


_agreed: ContextVar[int | None] = ContextVar("room", default=None)


def room_for_images() -> int:
    """Bytes of images that `load_data` keeps in memory, in each process of a run."""
    agreed = _agreed.get()
    return int(MEMORY_SHARE * free_memory()) // on_this_machine() if agreed is None else agreed


@contextmanager
def room_of_all() -> Iterator[None]:
    """The same room in all processes of a run: what the one with the least has now, before any has taken its part."""
    token = _agreed.set(min(current().each(room_for_images())))
    try:
        yield
    finally:
        _agreed.reset(token)


def _of_the_machine() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    try:  # no Linux: half of what is built in
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, OSError, ValueError):
        return 4 << 30
