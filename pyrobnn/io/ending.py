"""How the end of one process of a run becomes the end of all, with a line that says how to go on."""

from __future__ import annotations

import os
import re
import signal
import threading
from typing import Any

from pyrobnn.errors import ProcessError

_LOST = re.compile(r"gloo|nccl|connection .*(closed|reset|refused)|broken pipe|socket|timed out", re.IGNORECASE)
_GO_ON = "run the same command with --resume to go on from the last checkpoint, on as many processes as you like"


def of_another(error: BaseException) -> ProcessError | None:
    """What a failed exchange means: another process is gone."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    network = kinds & {"DistNetworkError", "DistStoreError"}
    if not network and not ((type(error) is RuntimeError or "DistError" in kinds) and _LOST.search(str(error))):
        return None
    return ProcessError(f"another process of this run has ended or does not answer: {_GO_ON}")


class Ending:
    """A launcher that sees a process die ends the others by SIGTERM, once; each says what happened all the same.

    Where the signal comes before this process has seen it, it is told. Where it comes later, it would keep the process
    from saying so: one signal is let pass then, after the group too, as the line is printed by the caller.
    """

    def __enter__(self) -> Ending:
        self.pid, self.known = os.getpid(), False
        self.handles = threading.current_thread() is threading.main_thread()
        if self.handles:
            self.before = signal.signal(signal.SIGTERM, self._end)
        return self

    def after(self, error: BaseException) -> None:
        """The process ends by this error."""
        self.known = isinstance(error, ProcessError)

    def _end(self, *_: Any) -> None:
        if os.getpid() != self.pid:  # a worker that reads images has inherited this
            os._exit(128 + signal.SIGTERM)
        signal.signal(signal.SIGTERM, self.before)
        if not self.known:
            raise ProcessError(f"told to end (SIGTERM), as the others are when a process has ended: {_GO_ON}")

    def __exit__(self, *_: object) -> None:
        if self.handles and not self.known:
            signal.signal(signal.SIGTERM, self.before)
