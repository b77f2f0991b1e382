"""Progress output: the plan of a run, a bar with two ETAs on a terminal, one line per epoch elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress

console = Console(stderr=True, highlight=False)
# The run that a fit belongs to, so that the fit's lines can say how long the whole run still takes.
_run: ContextVar[RunProgress | None] = ContextVar("run", default=None)


class RunProgress:
    """Context manager around all fits of a run: says the plan, and estimates how long the rest takes.

    Args:
        epochs: planned by phase, such as ``{"dense": 7, "infer": 7, "tune": 16}``. A fit belongs to the phase that its
            title begins with.
        done: of these, in a run that is resumed.
        note: what else the plan line says.
        enabled: False shows nothing.
    """

    def __init__(
        self,
        epochs: Mapping[str, float],
        *,
        done: Mapping[str, float] | None = None,
        note: str = "",
        enabled: bool = True,
    ) -> None:
        self.epochs, self.done = dict(epochs), {**dict.fromkeys(epochs, 0.0), **(done or {})}
        self.note, self.enabled = note, enabled
        self._seconds: dict[str, float] = {}  # of the last epoch, by phase
        self._last: float | None = None

    @property
    def plan(self) -> str:
        """The plan in one line."""
        phases = ", ".join(f"{name} {number:g}" for name, number in self.epochs.items() if number)
        finished = sum(self.done.values())
        resumed = f"; {finished:g} done before" if finished else ""
        return f"plan: {phases} epochs" + (f"; {self.note}" if self.note else "") + resumed

    def __enter__(self) -> RunProgress:
        if self.enabled:
            console.print(f"[bold]{escape(self.plan)}[/]", soft_wrap=True)
        self._token = _run.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _run.reset(self._token)

    def epoch(self, title: str, seconds: float, count: int = 1) -> None:
        """`count` more epochs of the fit of that title are done, the last one in so many seconds."""
        phase = phase_of(title)
        if phase in self.epochs:
            self.done[phase] += count
            self._seconds[phase] = self._last = seconds

    def left(self) -> float | None:
        """Seconds of what is planned and not done, at the pace of each phase's last epoch; None before the first.

        A phase that has not begun is expected to go at the pace of the one before.
        """
        if self._last is None:
            return None
        rest = {phase: max(0.0, number - self.done[phase]) for phase, number in self.epochs.items()}
        return sum(number * self._seconds.get(phase, self._last) for phase, number in rest.items())


def phase_of(title: str) -> str:
    """The phase that a fit of this title belongs to.

    >>> phase_of("infer 2.1"), phase_of("retune")
    ('infer', 'tune')
    """
    word = (title.split() or [""])[0]
    return "tune" if word == "retune" else word


def cut_line(
    number: int, before: Mapping[str, int], after: Mapping[str, int], left: Mapping[str, float], valid: str | None
) -> str:
    """What a cut did, in one line: widths that changed, shares left, the validation figure.

    Args:
        number: of the cut, from 1.
        before, after: channels by group.
        left: share of `macs` and `params`, maybe of `latency`, of the dense network, in [0, 1].
        valid: the figure on the validation images right after the cut, in words.

    >>> cut_line(1, {"a": 8, "b": 4}, {"a": 3, "b": 4}, {"macs": 0.5, "params": 0.25}, "90.00 %")
    'cut 1: a 8→3; 50.0 % of MACs, 25.0 % of parameters left; valid 90.00 %'
    """
    changed = [f"{group} {width}→{after[group]}" for group, width in before.items() if after[group] != width]
    shown = ", ".join(changed[:6]) + (f" and {len(changed) - 6} more" if len(changed) > 6 else "")
    words = {"macs": "MACs", "params": "parameters", "latency": "latency"}
    sizes = ", ".join(f"{100 * left[name]:.1f} % of {word}" for name, word in words.items() if name in left) + " left"
    return f"cut {number}: {shown or 'nothing'}; {sizes}" + ("" if valid is None else f"; valid {valid}")


def say(text: str, style: str = "") -> None:
    """One line, in the colour of what it means: `green` reached, `yellow` given up or missed, `cyan` a cut."""
    console.print(escape(text), style=style or None, soft_wrap=True)


def duration(seconds: float) -> str:
    """Hours, minutes, seconds.

    >>> duration(75), duration(3601)
    ('1:15', '1:00:01')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


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
        self.run = _run.get()
        self._bar = RichProgress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.completed}/{task.total}  loss {task.fields[loss]:.4f}  {task.fields[left]}"),
            console=console,
            transient=True,
            disable=not enabled or not console.is_terminal,
        )
        self._drawn = 0.0
        self._epoch = 0  # the last one that the run was told of; one that went on within a fit is told of all before

    def __enter__(self) -> Progress:
        self._start = time.monotonic()
        if not self._bar.disable:
            self._bar.start()
        self._task = self._bar.add_task(self.title, total=self.total, completed=self.done, loss=float("nan"), left="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._bar.disable:  # older versions of rich end what was never shown with an empty line
            self._bar.stop()

    def update(self, step: int, loss: float) -> None:
        """Called after each step; draws at most ten times a second."""
        now = time.monotonic()
        if now - self._drawn > 0.1:
            self._drawn = now
            here = (now - self._start) / max(1, step - self.done) * (self.total - step)
            whole = None if self.run is None else self.run.left()
            left = f"{duration(here)} left" + ("" if whole is None else f", run {duration(max(here, whole))}")
            self._bar.update(self._task, completed=step, loss=loss, left=left)

    def epoch(self, row: dict[str, Any], epochs: int) -> None:
        """Called after each epoch: one line with its figures."""
        if self.run is not None:
            self.run.epoch(self.title, row["seconds"], row["epoch"] - self._epoch)
            self._epoch = row["epoch"]
        if not self.enabled:
            return
        parts = [f"{self.title} {row['epoch']}/{epochs}", f"loss {row['loss']:.4f}", f"nll {row['nll']:.4f}"]
        if row["kl"]:
            parts.append(f"kl {row['kl']:.4f} (x{row['kl_weight']:.2f})")
        for key, value in row.items():  # of a class per image both are accuracies
            if key in ("train_accuracy", "valid_accuracy"):
                parts.append(f"{key[:5]} {100 * value:.2f} %")
            elif key.startswith("valid_"):
                parts.append(f"valid {key[6:].replace('_', ' ')} {value:.4g}")
        parts.append(f"{row['seconds']:.1f} s")
        whole = None if self.run is None else self.run.left()
        if whole is not None:
            parts.append(f"{duration(whole)} left")
        say("  ".join(parts))
