"""How much memory is free for images."""

from __future__ import annotations

import os
from pathlib import Path

from pyrobnn.io.launch import on_this_machine

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


def room_for_images() -> int:
    """Bytes of images that `load_data` keeps in memory, in each process of a run."""
    return int(MEMORY_SHARE * free_memory()) // on_this_machine()


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
