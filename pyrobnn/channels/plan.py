"""The pruning plan: the units of each group that stay, as plain data."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyrobnn.errors import CheckpointError, PlanError
from pyrobnn.io.files import is_short, read_bytes, write_text

if TYPE_CHECKING:
    from pyrobnn.channels.table import ChannelTable

_SCHEMA = 1


@dataclass(frozen=True)
class PruningPlan:
    """What is kept of every channel group, in the coordinates of the net the plan was made for.

    Attributes:
        keep: per group the kept units, ascending.
        channels: per group the number of units before.
        score: per group one score per unit before the cut, or None.
        reason: per group one short sentence.

    Raises:
        PlanError: a group keeps nothing, or an index is out of range or given twice.

    >>> plan = PruningPlan({"conv1": [0, 2]}, {"conv1": 4})
    >>> plan.compose(PruningPlan({"conv1": [1]}, {"conv1": 2})).keep
    {'conv1': [2]}
    """

    keep: dict[str, list[int]]
    channels: dict[str, int]
    score: dict[str, list[float] | None] = field(default_factory=dict)
    reason: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Widths; `keep` has the indices."""
        parts = [f"{name} {len(units)} of {self.channels[name]}" for name, units in self.keep.items()]
        more = f", and {len(parts) - 8} groups more" if len(parts) > 8 else ""
        return f"PruningPlan({', '.join(parts[:8])}{more})"

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", {name: _units(name, units) for name, units in self.keep.items()})
        object.__setattr__(self, "channels", {name: _whole(count, name) for name, count in self.channels.items()})
        object.__setattr__(
            self, "score", {n: None if s is None else [float(v) for v in s] for n, s in self.score.items()}
        )
        object.__setattr__(self, "reason", dict(self.reason))
        for name, text in self.reason.items():
            if not isinstance(text, str):
                raise PlanError(f"expected a sentence as the reason for {name!r}, got {text!r}")
        for name in self.channels.keys() ^ self.keep.keys():
            raise PlanError(f"expected the same groups in keep and channels, only one has {name!r}")
        for extra in ("score", "reason"):
            for name in getattr(self, extra).keys() - self.keep.keys():
                raise PlanError(f"the plan has a {extra} for {name!r} but does not say what is kept of it")
        for name, units in self.keep.items():
            count = self.channels[name]
            if not units:
                raise PlanError(f"the plan keeps nothing of {name!r}: keep at least one unit")
            if units[0] < 0 or units[-1] >= count:
                raise PlanError(f"expected units 0..{count - 1} for {name!r}, got {units[0]}..{units[-1]}")
            scores = self.score.get(name)
            if scores is not None and len(scores) != count:
                raise PlanError(f"expected {count} scores for {name!r}, got {len(scores)}")

    @classmethod
    def full(cls, table: ChannelTable) -> PruningPlan:
        """The plan that keeps everything."""
        return cls(
            {group.name: list(range(group.channels)) for group in table},
            {group.name: group.channels for group in table},
        )

    def widths(self) -> dict[str, int]:
        """Kept units per group."""
        return {name: len(units) for name, units in self.keep.items()}

    @property
    def is_full(self) -> bool:
        """Whether nothing is cut."""
        return all(len(units) == self.channels[name] for name, units in self.keep.items())

    def compose(self, later: PruningPlan) -> PruningPlan:
        """This plan followed by one made for the smaller net, in the coordinates of the original net.

        Scores are those of the last decision a unit took part in.

        Raises:
            PlanError: `later` was made for other widths than this plan leaves.
        """
        keep, channels = dict(self.keep), dict(self.channels)
        score, reason = dict(self.score), dict(self.reason)
        for name, units in later.keep.items():
            old = self.keep.get(name)
            if old is None:
                keep[name], channels[name] = list(units), later.channels[name]
                if name in later.score:
                    score[name] = later.score[name]
                if name in later.reason:
                    reason[name] = later.reason[name]
                continue
            if later.channels[name] != len(old):
                raise PlanError(
                    f"the later plan was made for {later.channels[name]} units of {name!r}, "
                    f"this plan leaves {len(old)}: compose plans in the order they were applied"
                )
            keep[name] = [old[unit] for unit in units]
            fresh, before = later.score.get(name), self.score.get(name)
            if fresh is not None and (before is not None or len(old) == self.channels[name]):
                merged = list(before) if before is not None else [math.nan] * self.channels[name]
                for unit, value in zip(old, fresh, strict=True):
                    merged[unit] = value
                score[name] = merged
            if name in later.reason and (len(units) < len(old) or name not in reason):
                reason[name] = later.reason[name]
        return PruningPlan(keep, channels, score, reason)

    # Files

    def to_json(self) -> str:
        """The plan as JSON text; infinite scores are written as strings."""
        score = {
            n: None if s is None else [v if math.isfinite(v) else str(v) for v in s] for n, s in self.score.items()
        }
        body = {
            "schema": _SCHEMA,
            "keep": self.keep,
            "channels": self.channels,
            "score": score,
            "reason": self.reason,
        }
        return json.dumps(body, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> PruningPlan:
        """Read :meth:`to_json` back.

        Raises:
            PlanError: the text is not such a plan.
        """
        try:
            body = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise PlanError(f"expected a plan as JSON, got text that is not JSON: {error}") from None
        if not isinstance(body, dict) or body.get("schema") != _SCHEMA:
            raise PlanError(f"expected a plan with schema {_SCHEMA}, got something else: write it with plan.save")
        parts: dict[str, Any] = {key: body.get(key, {}) for key in ("keep", "channels", "score", "reason")}
        for key, part in parts.items():
            if not isinstance(part, Mapping):
                raise PlanError(f"expected an object under {key!r} of the plan, got {type(part).__name__}")
        try:
            return cls(**parts)
        except (TypeError, ValueError, OverflowError) as error:
            if isinstance(error, PlanError):
                raise
            raise PlanError(f"expected lists of numbers in the plan: {error}") from None

    def save(self, path: str | Path) -> None:
        """Write the plan; the file appears whole or not at all."""
        write_text(path, self.to_json() + "\n")

    @classmethod
    def load(cls, path: str | Path) -> PruningPlan:
        """Read a plan file.

        Raises:
            PlanError: there is no such file, or it holds no plan.
        """
        try:
            text = read_bytes(path, starts_right=is_short).decode("utf-8")
        except (CheckpointError, UnicodeDecodeError) as error:
            raise PlanError(f"cannot read the plan {path}: {error}") from None
        return cls.from_json(text)


def _whole(number: Any, name: str) -> int:
    if isinstance(number, bool) or int(number) != number:
        raise PlanError(f"expected whole unit indices and counts for {name!r}, got {number!r}")
    return int(number)


def _units(name: str, units: Iterable[Any]) -> list[int]:
    if isinstance(units, str | bytes) or not isinstance(units, Iterable):
        raise PlanError(f"expected a list of unit indices for {name!r}, got {units!r}")
    result = []
    for unit in units:
        result.append(_whole(unit, name))
    if len(set(result)) != len(result):
        raise PlanError(f"a unit of {name!r} is named twice in the plan")
    return sorted(result)
