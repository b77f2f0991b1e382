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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from pyrobnn.errors import NetError

Mode = Literal["local", "moments"]
Kind = Literal["linear", "consumer", "activation"]
Deferred = Callable[[Tensor | None], Tensor]
_no_dispatch = torch._C.DisableTorchFunctionSubclass


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
        variance: variances, broadcastable to ``loc``; kept in fp32 (fp64 if ``loc`` is fp64). Stride-0
            (expanded) variances stay expanded: a kernel with one variance is recognised as such.

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
    mode: Mode
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
        new.mode, new.sources, new._replay = mode, (source,), source.draw
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
    def _variance(self) -> Tensor:
        if not isinstance(self._held, Tensor):
            self._held = self._held(None)
        return self._held

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

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        what = "weight" if self.is_weight else "activation"
        return f"Moments({what}, mode={self.mode!r}, shape={tuple(self._loc.shape)}, dtype={self._loc.dtype})"

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        with _no_dispatch():
            return _dispatch(func, args, {} if kwargs is None else dict(kwargs))

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # Reached only by code that hides the tensor from __torch_function__ (a C++ or compiled operation).
        return _without_rule(func, args, {} if kwargs is None else dict(kwargs))


def _make(loc: Tensor, variance: Tensor | Deferred) -> Moments:
    """An activation from parts that are known to fit."""
    new: Moments = torch.Tensor._make_wrapper_subclass(Moments, loc.shape, dtype=loc.dtype, device=loc.device)  # type: ignore[attr-defined]
    new._loc, new._held, new.mode, new.sources = loc, variance, "moments", ()
    new._replay, new._sample, new._store, new._seen = None, None, _Store(), 0
    return new


def activation(loc: Tensor, variance: Tensor) -> Moments:
    """An activation from a mean and a variance of the same shape (what rules return)."""
    if variance.dtype not in (torch.float32, torch.float64):
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


# ------------------------------------------------------------------------------------------------
# the registry


@dataclass(frozen=True)
class Rule:
    """How one function treats moments.

    ``kind`` says what happens when every :class:`Moments` argument is a weight: ``"linear"`` rules
    (sums, products with constants, movements) return a weight again; ``"consumer"`` rules
    (convolutions, normalisations) know what to do; ``"activation"`` rules see the weight's draw.
    """

    apply: Callable[..., Any]
    kind: Kind
    inplace: bool


RULES: dict[Any, Rule] = {}


def ops(*names: str) -> tuple[Callable[..., Any], ...]:
    """Every public form of an operation: ``torch.f``, ``F.f``, ``Tensor.f`` and in-place ``f_``."""
    found: list[Callable[..., Any]] = []
    for name in names:
        for form in (name, name + "_"):
            for home in (torch, F, torch.Tensor, torch._C._nn):
                func = getattr(home, form, None)
                if callable(func) and func not in found:
                    found.append(func)
    if not found:
        raise AssertionError(f"no operation is called {names}")
    return tuple(found)


def rule(
    *functions: Callable[..., Any], kind: Kind = "activation"
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter the decorated function as the rule of ``functions``.

    The rule is called with the arguments of the operation (``out=`` and ``inplace=`` taken away, as
    the dispatcher serves both) and returns :class:`Moments`, a plain tensor, a sequence of those, or
    ``NotImplemented`` if it cannot treat these arguments.
    """

    def enter(apply: Callable[..., Any]) -> Callable[..., Any]:
        for func in functions:
            name = func.__name__
            dunder = name.startswith("__")
            inplace = (
                (name.startswith("__i") and name not in ("__invert__", "__index__", "__int__"))
                if dunder
                else name.endswith("_")
            )
            RULES[func] = Rule(apply, kind, inplace)
        return apply

    return enter


def _metadata() -> Iterator[Any]:
    for name in (
        "dim",
        "size",
        "stride",
        "numel",
        "nelement",
        "ndimension",
        "is_floating_point",
        "is_complex",
        "is_contiguous",
        "get_device",
        "element_size",
        "__len__",
        "is_signed",
    ):
        yield getattr(torch.Tensor, name)
    for name in (
        "shape",
        "dtype",
        "device",
        "ndim",
        "layout",
        "is_cuda",
        "is_cpu",
        "is_mps",
        "is_sparse",
        "is_quantized",
        "is_mkldnn",
        "is_meta",
        "is_nested",
        "is_xpu",
        "itemsize",
        "names",
    ):
        if hasattr(torch.Tensor, name):
            yield getattr(torch.Tensor, name).__get__
    for name in ("is_floating_point", "is_complex", "numel"):
        yield getattr(torch, name)


METADATA: frozenset[Any] = frozenset(_metadata())
_requires_grad = torch.Tensor.requires_grad.__get__  # type: ignore[attr-defined]
_is_leaf = torch.Tensor.is_leaf.__get__  # type: ignore[attr-defined]
_grad = torch.Tensor.grad.__get__  # type: ignore[attr-defined]
_grad_fn = torch.Tensor.grad_fn.__get__  # type: ignore[attr-defined]


def _dispatch(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if func in METADATA:
        return func(args[0]._loc, *args[1:], **kwargs)
    entry = RULES.get(func)
    if entry is None:
        return _without_rule(func, args, kwargs)
    found = [x for x in _flat(args, kwargs) if isinstance(x, Moments)]
    for x in found:
        if x._seen != x._store.version:
            raise NetError(
                f"moments: a view of this tensor was changed in place before {_where(func)}; "
                f"make that operation out-of-place."
            )
    target = kwargs.pop("out", None)
    inplace = bool(kwargs.pop("inplace", False)) or entry.inplace
    weights_only = all(x._replay is not None for x in found)
    if weights_only and (entry.kind == "activation" or (inplace and target is None)):
        result = NotImplemented
    else:
        result = entry.apply(*args, **kwargs)
    if result is NotImplemented:
        if target is not None:
            kwargs["out"] = target
        return _without_rule(func, args, kwargs, inplace=inplace)
    if weights_only and entry.kind == "linear" and target is None:
        _derive(result, entry.apply, args, kwargs, found)
    if target is not None:
        return _write(target, result, func)
    if inplace:
        # x += m with a plain x rebinds the name, so a new object is right; x.add_(m) need not.
        if not isinstance(args[0], Moments) and func.__name__.startswith("__i"):
            return result
        return _write(args[0], result, func)
    return result


def _flat(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
    for x in (*args, *kwargs.values()):
        if isinstance(x, (tuple, list)):
            yield from x
        else:
            yield x


def _derive(
    result: Any,
    apply: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    found: list[Moments],
) -> None:
    """Mark what was computed from weights as a weight: its draw is the same function of their draws."""
    sources = tuple(dict.fromkeys(s for x in found for s in x.sources))
    mode = found[0].mode
    cache: list[Any] = []

    def replay(position: int | None) -> Tensor:
        if not cache:
            drawn_args, drawn_kwargs = tree_map(plain, (args, kwargs))
            cache.append(apply(*drawn_args, **drawn_kwargs))
        drawn: Tensor = cache[0] if position is None else cache[0][position]
        return drawn

    many = isinstance(result, (tuple, list))
    for i, x in enumerate(result if many else (result,)):
        if isinstance(x, Moments) and not any(x is y for y in found):
            x.mode, x.sources = mode, sources
            x._replay = lambda i=i: replay(i if many else None)  # type: ignore[misc]


def _write(target: Any, result: Any, func: Callable[..., Any]) -> Any:
    """Serve ``out=`` and in-place forms: the target object takes the result's moments."""
    if not isinstance(target, Moments):
        if isinstance(result, Moments):
            raise NetError(
                f"moments: {_where(func)} writes a random result into a plain tensor; return it instead."
            )
        return target.copy_(result)
    if target._loc.shape != (result.shape if isinstance(result, Tensor) else ()):
        raise NetError(
            f"moments: {_where(func)} writes shape {tuple(result.shape)} into {tuple(target._loc.shape)}."
        )
    loc, variance = parts(result)
    target._loc = loc
    target._held = torch.zeros_like(loc, dtype=torch.float32) if variance is None else variance
    target._replay, target._sample, target.sources = None, None, ()
    target._store.version += 1
    target._seen = target._store.version
    return target


def share_store(view: Moments, base: Moments) -> Moments:
    """Note that ``view`` looks at the memory of ``base`` (an in-place write to one stales the other)."""
    view._store, view._seen = base._store, base._seen
    return view


def _without_rule(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], inplace: bool = False
) -> Any:
    found = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Moments)]
    if any(x._replay is None for x in found):
        raise NetError(
            f"moments: no rule carries a mean and variance through {_where(func)}; use the 'weight' or 'local' "
            f"estimator for this net, or add a rule with pyrobnn.moments.rule."
        )
    if func in (_requires_grad, _is_leaf, _grad, _grad_fn):
        return func(found[0].sample_weight())
    name = getattr(func, "__name__", "")
    if args and is_weight(args[0]) and (inplace or (name.endswith("_") and not name.startswith("__"))):
        raise NetError(
            f"moments: {_where(func)} would change a random weight in place; make it out-of-place."
        )
    args, kwargs = tree_map(plain, (args, kwargs))
    return func(*args, **kwargs)


def _where(func: Callable[..., Any]) -> str:
    """Name the operation, and the module whose ``forward`` called it."""
    owner = getattr(func, "__objclass__", None) or getattr(func, "__module__", None) or "torch"
    owner = getattr(owner, "__name__", owner)
    name = getattr(func, "__qualname__", None) or getattr(func, "__name__", repr(func))
    if name == "__get__":  # a property of Tensor
        name = getattr(getattr(func, "__self__", None), "__name__", name)
    operation = name if "." in name else f"{owner}.{name}"
    frame = sys._getframe(1)
    inner: nn.Module | None = None
    root: nn.Module | None = None
    while frame is not None:
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module):
            inner = module if inner is None else inner
            root = module
        frame = frame.f_back  # type: ignore[assignment]
    if inner is None or root is None:
        return f"operation {operation!r}"
    path = next((path for path, module in root.named_modules() if module is inner), "")
    return f"operation {operation!r} in module {path or 'the net itself'!r} ({type(inner).__name__})"


def refuse(message: str) -> NoReturn:
    """Raise :class:`NetError` for an argument that a rule cannot treat."""
    raise NetError(f"moments: {message}")
