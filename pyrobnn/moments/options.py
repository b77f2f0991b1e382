"""Options of the moment rules: which approximation each uses, set by a context manager."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Literal

from pyrobnn.errors import ConfigError

_CHOICES = {
    "relu": ("exact", "first_order"),
    "smooth": ("quadrature", "first_order"),
    "max_pool": ("argmax", "clark"),
    "covariance": ("diagonal", "full", "published"),
}


@dataclass(frozen=True)
class MomentOptions:
    """How moments pass through operations that have more than one accepted treatment.

    Args:
        relu: ``"exact"`` uses the moments of a rectified Gaussian; ``"first_order"`` linearises at
            the mean, as the extended-VI code does (variance times the gradient, 0 or 1). It also
            rules the other piecewise polynomial activations (leaky ReLU, ReLU6, hard swish, ...).
        smooth: GELU, SiLU, tanh, sigmoid, ELU and their kin: ``"quadrature"`` (Gauss-Hermite) or
            ``"first_order"``.
        max_pool: ``"argmax"`` gathers the variance where the mean is largest ("co-pooling");
            ``"clark"`` takes the moments of a maximum of Gaussians, two at a time (Clark, 1961).
        covariance: ``"diagonal"`` keeps a variance per activation; ``"full"`` and ``"published"`` the covariance
            inside every map, for small networks (:mod:`pyrobnn.moments.full`).
        nodes: number of Gauss-Hermite nodes, 2 to 64.
    """

    relu: Literal["exact", "first_order"] = "exact"
    smooth: Literal["quadrature", "first_order"] = "quadrature"
    max_pool: Literal["argmax", "clark"] = "argmax"
    nodes: int = 10
    covariance: Literal["diagonal", "full", "published"] = "diagonal"

    def __post_init__(self) -> None:
        for field, choices in _CHOICES.items():
            value = getattr(self, field)
            if value not in choices:
                raise ConfigError(f"moment option {field}: expected one of {choices}, got {value!r}.")
        if not 2 <= self.nodes <= 64:
            raise ConfigError(f"moment option nodes: expected 2 to 64, got {self.nodes}.")


_DEFAULT = MomentOptions()
_current: ContextVar[MomentOptions] = ContextVar("moment_options", default=_DEFAULT)


def current_options() -> MomentOptions:
    """The options in force."""
    return _current.get()


@contextmanager
def moment_options(**changes: Any) -> Iterator[MomentOptions]:
    """Change moment options inside a ``with`` block; the old ones return at its end.

    Args:
        **changes: fields of :class:`MomentOptions`.

    Yields:
        The options in force inside the block.

    Raises:
        ConfigError: an unknown field or a value outside its choices.

    Example:
        >>> with moment_options(relu="first_order") as options:
        ...     options.max_pool
        'argmax'
        >>> current_options().relu
        'exact'
    """
    unknown = sorted(set(changes) - set(MomentOptions.__dataclass_fields__))
    if unknown:
        known = ", ".join(MomentOptions.__dataclass_fields__)
        raise ConfigError(f"moment options: {unknown[0]!r} is not one of {known}.")
    token = _current.set(replace(_current.get(), **changes))
    try:
        yield _current.get()
    finally:
        _current.reset(token)
