"""What was measured on this machine once: kept in the process and in the user's cache folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import platformdirs
import torch

from pyrobnn.io.files import write_json


class Measurements:
    """Measured values by what they were measured on.

    A key holds the processor or the GPU, the number of threads and the version of torch beside what the caller names.

    Args:
        name: of the file in the user's cache folder, without its suffix.
        check: gives a value read from the file back in its plain form; raises where it is none of ours.
    """

    def __init__(self, name: str, check: Callable[[Any], Any]) -> None:
        self.name, self.check = name, check
        self.known: dict[str, Any] = {}

    def once(self, what: Any, measure: Callable[[], Any], device: torch.device | None = None) -> Any:
        """The value for `what` (told apart by its `repr`), measured where it is not known yet.

        A cache that is damaged or cannot be written is one that is not there.
        """
        machine = (processor(device), torch.get_num_threads(), torch.__version__)
        key = hashlib.sha256(repr((what, machine)).encode()).hexdigest()[:16]
        if key not in self.known:
            self.known.update(self._read())
        if key not in self.known:
            self.known[key] = measure()
            with contextlib.suppress(OSError):
                write_json(self.file, {**self._read(), key: self.known[key]})
        return self.known[key]

    @property
    def file(self) -> Path:
        """Where the values are kept."""
        return Path(platformdirs.user_cache_path("pyrobnn", appauthor=False, opinion=False)) / f"{self.name}.json"

    def _read(self) -> dict[str, Any]:
        try:
            return {str(key): self.check(value) for key, value in json.loads(self.file.read_text()).items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}


def processor(device: torch.device | None = None) -> str:
    """The name of the processor, or of a GPU."""
    if device is not None and device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
