"""The (mean, variance) tensor: one object, read as a random weight or as a random activation.

A :class:`Moments` travels through a network by ``__torch_function__``: every operation that meets
one is looked up in a single registry of rules. Rules live in the ``rules_*`` files and are entered
by the :func:`rule` decorator.

Two readings share the registry:

* mode ``"local"``, as a *weight* next to plain activations: convolutions and linear layers return
  a plain sample of their *output* (local reparameterisation, Kingma, Salimans & Welling 2015);
* mode ``"moments"``, as an *activation* (or as a weight that turns activations into such):
  the output carries a mean and a variance onwards (extended variational inference).

An operation without a rule uses one sample of a weight, the same sample at every use of that
weight; an activation cannot be sampled and raises :class:`~pyrobnn.errors.NetError`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from pyrobnn.errors import NetError

Mode = Literal["local", "moments"]
Deferred = Callable[[Tensor | None], Tensor]
_no_dispatch = torch._C.DisableTorchFunctionSubclass


def _registry() -> ModuleType:
    """The registry, which is imported after this file because it knows the class below."""
    return sys.modules["pyrobnn.moments.registry"]


class Source:
    """One random weight: its cached draw, and how often the network has consumed it.

    Several :class:`Moments` share a source when they are derived from one weight (a gated copy,
    a view), so that two uses of a weight can share a draw.
    """

    __slots__ = ("_draw", "generator", "loc", "name", "on_shared", "shared", "uses", "variance")

    def __init__(
        self,
        loc: Tensor,
        variance: Tensor,
        draw: Tensor | None,
        generator: torch.Generator | None,
        name: str,
        shared: bool,
        on_shared: Callable[[str], None] | None,
    ) -> None:
        self.loc, self.variance, self._draw = loc, variance, draw
        self.generator, self.name, self.shared, self.on_shared = generator, name, shared, on_shared
        self.uses = 0

    def draw(self) -> Tensor:
        """One sample of the weight, made at the first call and kept."""
        if self._draw is None:
            noise = torch.empty_like(self.loc).normal_(generator=self.generator)
            self._draw = self.loc + noise * self.variance.sqrt().to(self.loc.dtype)
        return self._draw

    def first_use(self) -> bool:
        """Count a use; True if independent noise at the output is still honest."""
        self.uses += 1
        if self.uses > 1 and not self.shared:
            self.shared = True
            if self.on_shared is not None:
                self.on_shared(self.name)
        return not self.shared


class _Store:
    """What a tensor and its views have in common: a counter of in-place writes."""

    __slots__ = ("version",)

    def __init__(self) -> None:
        self.version = 0


class Moments(torch.Tensor):
    """A tensor of independent Gaussian entries, held as a mean and a variance.

    ``Moments(loc, variance)`` is a random activation; :meth:`Moments.weight` makes a random weight.

    Args:
        loc: means, any floating dtype.
        variance: variances, broadcastable to ``loc``; kept in fp32 (fp64 if ``loc`` is fp64), or in bfloat16 next to
            such means where a rule leaves it so. Stride-0 (expanded) variances stay expanded: a kernel with one
            variance is recognised as such.

    Attributes:
        loc: the means. (``mean`` and ``var`` stay what they are on every tensor: reductions.)
        variance: the variances, of the shape of ``loc``.

    Raises:
        NetError: ``variance`` does not broadcast to ``loc``.

    Example:
        >>> x = Moments(torch.tensor([-1.0, 2.0]), torch.tensor([0.0, 4.0]))
        >>> y = 3 * x + 1
        >>> y.loc.tolist(), y.variance.tolist()
        ([-2.0, 7.0], [0.0, 36.0])
    """

    _loc: Tensor
    _held: Tensor | Deferred
    reading: Mode
    sources: tuple[Source, ...]
    _replay: Callable[[], Tensor] | None
    _sample: Tensor | None
    _store: _Store
    _seen: int

    @staticmethod
    def __new__(cls, loc: Tensor, variance: Tensor) -> Moments:
        variance = variance if variance.dtype == torch.float64 else variance.float()
        if variance.shape != loc.shape:
            try:
                variance = variance.expand(loc.shape)
            except RuntimeError:
                raise NetError(
                    f"moments: expected a variance that broadcasts to the mean's shape {tuple(loc.shape)}, "
                    f"got {tuple(variance.shape)}; give one variance per entry, or a broadcastable one."
                ) from None
        return _make(loc, variance)

    @classmethod
    def weight(
        cls,
        loc: Tensor,
        variance: Tensor,
        mode: Mode = "local",
        *,
        draw: Tensor | None = None,
        generator: torch.Generator | None = None,
        name: str = "",
        shared: bool = False,
        on_shared: Callable[[str], None] | None = None,
    ) -> Moments:
        """A random weight, to be handed to ``torch.func.functional_call``.

        Args:
            loc: means.
            variance: variances, broadcastable to ``loc``.
            mode: ``"local"`` (locally reparameterised outputs) or ``"moments"``.
            draw: the sample used by operations without a rule; drawn when first needed if absent.
            generator: source of the noise; the global one if absent.
            name: for messages and for ``on_shared``.
            shared: the weight is used more than once in a forward pass: use its draw throughout.
                Independent output noise at each use would ignore that the uses move together.
            on_shared: called with ``name`` when a second use is discovered.

        Example:
            >>> w = Moments.weight(torch.ones(1, 3), torch.full((1, 3), 1e-8))
            >>> out = torch.nn.functional.linear(torch.ones(2, 3), w)   # plain: noise 2e-4 around 3
            >>> type(out) is torch.Tensor, out.round().flatten().tolist()
            (True, [3.0, 3.0])
        """
        new = cls(loc, variance)
        source = Source(new._loc, new._variance, draw, generator, name, shared, on_shared)
        new.reading, new.sources, new._replay = mode, (source,), source.draw
        return new

    @property
    def loc(self) -> Tensor:
        """The means."""
        return self._loc

    @property
    def variance(self) -> Tensor:
        """The variances."""
        return self._variance

    @property
    def spread(self) -> Tensor:
        """The variances as they are held, which may be bfloat16."""
        if not isinstance(self._held, Tensor):
            self._held = self._held(None)
        return self._held

    @property
    def _variance(self) -> Tensor:
        held = self.spread
        return held.float() if held.dtype == torch.bfloat16 else held

    @property
    def pending(self) -> Deferred | None:
        """The computation of a variance that has not been needed yet."""
        return None if isinstance(self._held, Tensor) else self._held

    @property
    def is_weight(self) -> bool:
        """Whether one sample can stand for this tensor: it is a weight or made of weights only."""
        return self._replay is not None

    def sample_weight(self) -> Tensor:
        """The one draw of this weight (or of what was derived from it)."""
        if self._replay is None:
            raise NetError("moments: an activation has no sample; only weights can be drawn.")
        if self._sample is None:
            self._sample = self._replay()
        return self._sample

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        what = "weight" if self.is_weight else "activation"
        return f"Moments({what}, reading={self.reading!r}, shape={tuple(self._loc.shape)}, dtype={self._loc.dtype})"

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        with _no_dispatch():
            return _registry().dispatch(func, args, {} if kwargs is None else dict(kwargs))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # Reached only by code that hides the tensor from __torch_function__ (a C++ or compiled operation).
        return _registry().without_rule(func, args, {} if kwargs is None else dict(kwargs))


def _make(loc: Tensor, variance: Tensor | Deferred) -> Moments:
    """An activation from parts that are known to fit."""
    new: Moments = torch.Tensor._make_wrapper_subclass(Moments, loc.shape, dtype=loc.dtype, device=loc.device)
    new._loc, new._held, new.reading, new.sources = loc, variance, "moments", ()
    new._replay, new._sample, new._store, new._seen = None, None, _Store(), 0
    return new


def activation(loc: Tensor, variance: Tensor) -> Moments:
    """An activation from a mean and a variance of the same shape (what rules return)."""
    if variance.dtype not in (torch.float32, torch.float64) and not variance.dtype == loc.dtype == torch.bfloat16:
        variance = variance.float()
    return _make(loc, variance)


def deferred(loc: Tensor, variance: Deferred) -> Moments:
    """An activation whose variance is computed when first needed, by ``variance(scale)``.

    A normalisation that follows a convolution folds its factor per channel into ``scale``, and so into
    the kernel, instead of passing over the whole map.
    """
    return _make(loc, variance)


def is_moments(x: Any) -> bool:
    """Whether ``x`` carries a variance."""
    return isinstance(x, Moments)


def is_weight(x: Any) -> bool:
    """Whether ``x`` is a random weight (or made of random weights only)."""
    return isinstance(x, Moments) and x._replay is not None


def plain(x: Any) -> Any:
    """The draw of a random weight; anything else unchanged."""
    return x.sample_weight() if is_weight(x) else x


def parts(x: Any) -> tuple[Any, Tensor | None]:
    """Mean and variance; the variance of a constant is ``None``."""
    return (x._loc, x._variance) if isinstance(x, Moments) else (x, None)


def held_parts(x: Any) -> tuple[Any, Tensor | None]:
    """Mean and variance as it is held, for rules that are right in bfloat16 too; the variance of a constant is ``None``."""
    return (x._loc, x.spread) if isinstance(x, Moments) else (x, None)


def share_store(view: Moments, base: Moments) -> Moments:
    """Note that ``view`` looks at the memory of ``base`` (an in-place write to one stales the other)."""
    view._store, view._seen = base._store, base._seen
    return view
