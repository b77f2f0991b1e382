"""A run as a list of named steps, each done once: what makes `--resume` exact.

The road of a method is plain code that calls `journal.step(name, function)`. A finished step is
skipped when the code runs again; the interrupted one goes on from its last epoch. All that one
step hands to the next is in `journal.carry`, which is data only, so it can be saved and loaded
without pickle.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyrobnn.errors import CheckpointError
from pyrobnn.io.checkpoint import load_checkpoint, save_checkpoint
from pyrobnn.pipeline.identity import difference

Carry = dict[str, Any]


class Journal:
    """The steps done so far and what they left.

    Args:
        path: checkpoint file; None keeps everything in memory.
        identity: what must be equal for a resume, see :mod:`pyrobnn.pipeline.identity`.
        resume: go on from `path` if it exists.

    Raises:
        CheckpointError: a damaged file, or one of another run.
    """

    def __init__(self, path: Path | None, identity: dict[str, Any], *, resume: bool = False) -> None:
        self.path = path
        self.identity = identity
        self.done: list[str] = []
        self.carry: Carry = {}
        self._fit: dict[str, Any] | None = None
        self._start, self._before = time.perf_counter(), 0.0
        if resume and path is not None and path.exists():
            self._load(load_checkpoint(path))

    def _load(self, state: dict[str, Any]) -> None:
        if not {"identity", "carry", "done", "fit", "seconds"} <= state.keys():
            raise CheckpointError(f"{self.path} is not the checkpoint of a run: delete it and start afresh")
        found = difference(state["identity"], self.identity)
        if found is not None:
            name, theirs, ours = found
            raise CheckpointError(
                f"{self.path} belongs to a run with {name}={theirs!r}, this one has {ours!r}: "
                "use the same settings, or another --out"
            )
        self.done, self.carry, self._fit = list(state["done"]), state["carry"], state["fit"]
        self._before = float(state["seconds"])

    @property
    def seconds(self) -> float:
        """Wall-clock time up to now, with that of the interrupted parts up to their last checkpoint."""
        return self._before + time.perf_counter() - self._start

    def step(self, name: str, function: Callable[[Carry], Carry]) -> None:
        """Run one step unless it is done; `function` takes the carry and returns what changes in it."""
        if name in self.done:
            return
        self.carry = {**self.carry, **function(self.carry)}
        self.done.append(name)
        self._fit = None
        self.save()

    @property
    def fit_state(self) -> dict[str, Any] | None:
        """State of the fit that was under way when the run stopped, for `fit(state=…)`."""
        return self._fit

    def save_fit(self, state: dict[str, Any]) -> None:
        """What `fit(save=…)` calls after each epoch."""
        self._fit = state
        self.save()

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        if self.path is not None:
            state: dict[str, Any] = {
                "identity": self.identity,
                "done": self.done,
                "carry": self.carry,
                "fit": self._fit,
                "seconds": self.seconds,
            }
            save_checkpoint(state, self.path)
