"""A progress bar with an ETA on a terminal, a line per epoch elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

console = Console(stderr=True, highlight=False)


class Progress:
    """Context manager around one fit.

    Args:
        title: what is being fitted.
        total: number of optimiser steps.
        done: steps done before a resume.
        enabled: False shows nothing.
    """

    def __init__(self, title: str, total: int, done: int = 0, *, enabled: bool = True) -> None:
        self.title, self.total, self.done, self.enabled = title, total, done, enabled
        self._bar = RichProgress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} steps  loss {task.fields[loss]:.4f}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not enabled or not console.is_terminal,
        )
        self._last = 0.0

    def __enter__(self) -> Progress:
        self._bar.start()
        self._task = self._bar.add_task(self.title, total=self.total, completed=self.done, loss=float("nan"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, step: int, loss: float) -> None:
        """Called after each step; draws at most ten times a second."""
        now = time.monotonic()
        if now - self._last > 0.1:
            self._last = now
            self._bar.update(self._task, completed=step, loss=loss)

    def epoch(self, row: dict[str, Any], epochs: int) -> None:
        """Called after each epoch: one line with its figures."""
        if not self.enabled:
            return
        parts = [f"{self.title} {row['epoch']}/{epochs}", f"loss {row['loss']:.4f}", f"nll {row['nll']:.4f}"]
        if row["kl"]:
            parts.append(f"kl {row['kl']:.4f} (x{row['kl_weight']:.2f})")
        parts.append(f"train {100 * row['train_accuracy']:.2f} %")
        if "valid_accuracy" in row:
            parts.append(f"valid {100 * row['valid_accuracy']:.2f} %")
        parts.append(f"{row['seconds']:.1f} s")
        console.print("  ".join(parts))
