"""An effect handler: the network gets moments where the trace holds plain samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from pyro.distributions import Delta, MaskedDistribution, Normal
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch.distributions import Independent, biject_to, identity_transform
from torch.distributions.transforms import IndependentTransform

from pyrobnn.errors import ConfigError
from pyrobnn.moments.tensor import Mode, Moments
from pyrobnn.moments.variances import square


def unwrap(fn: Any) -> Any:
    """The distribution inside ``Independent``, ``MaskedDistribution`` and expansions."""
    while isinstance(fn, (Independent, MaskedDistribution, ExpandedDistribution)):
        fn = fn.base_dist
    return fn


class MomentMessenger(Messenger):
    """Replace sampled weights by (mean, variance) tensors on their way to the network.

    Place it *inside* the trace::

        guide_trace = poutine.trace(guide).get_trace(x, y)
        handler = MomentMessenger(guide_trace, mode="local")
        model_trace = poutine.trace(poutine.replay(handler(model), trace=guide_trace)).get_trace(x, y)

    Pyro postprocesses a site from the outermost handler to the innermost, so the trace has recorded the
    plain value before this handler swaps it: log-probabilities and KL see samples and distributions, the
    network sees :class:`~pyrobnn.moments.Moments`. Only sites whose guide distribution is a ``Normal``
    qualify: one with the site's own name, or the ``<name>_unconstrained`` auxiliary of an ``AutoNormal``
    when the site's support needs no transform. All others, and observed ones, keep their sample. The
    recorded sample also serves operations that have no rule, so every use of a weight sees one draw.

    A weight that a forward pass consumes twice must be sampled (independent noise at each use would break
    the link between the uses). Give such names in ``shared`` (:func:`~pyrobnn.moments.shared_weights` finds
    them); names discovered on the way are added to ``handler.shared``, so the *first* pass of an undeclared
    shared weight is approximate and later ones are not, if the handler (or its set) is kept.

    Args:
        guide_trace: trace of the guide; may be set anew at each step (``handler.guide_trace = ...``).
        mode: ``"local"`` or ``"moments"``.
        select: which site names may be replaced; all if absent.
        generator: source of the local noise; the global one if absent.
        shared: names of sites used more than once per forward pass. A ``set`` is kept and updated.

    Raises:
        ConfigError: unknown ``mode``.
    """

    def __init__(
        self,
        guide_trace: Trace,
        mode: Mode = "local",
        select: Callable[[str], bool] | None = None,
        generator: torch.Generator | None = None,
        shared: Iterable[str] = (),
    ) -> None:
        super().__init__()
        if mode not in ("local", "moments"):
            raise ConfigError(f"mode of MomentMessenger: expected 'local' or 'moments', got {mode!r}.")
        self.guide_trace = guide_trace
        self.mode: Mode = mode
        self.select = select
        self.generator = generator
        self.shared: set[str] = shared if isinstance(shared, set) else set(shared)

    def _pyro_post_sample(self, msg: Any) -> None:
        name = msg["name"]
        if msg["is_observed"] or (self.select is not None and not self.select(name)):
            return
        value = msg["value"]
        if not isinstance(value, torch.Tensor) or isinstance(value, Moments):
            return
        normal = self._normal(name, msg["fn"])
        if normal is None:
            return
        loc, variance = normal.loc, square(normal.scale)
        if loc.shape != value.shape:
            loc, variance = loc.expand(value.shape), variance.expand(value.shape)
        msg["value"] = Moments.weight(
            loc,
            variance,
            self.mode,
            draw=value,
            generator=self.generator,
            name=name,
            shared=name in self.shared,
            on_shared=self.shared.add,
        )

    def _normal(self, name: str, prior: Any) -> Normal | None:
        nodes = self.guide_trace.nodes
        if name not in nodes or nodes[name]["type"] != "sample":
            return None
        fn = unwrap(nodes[name]["fn"])
        if isinstance(fn, Normal):
            return fn
        auxiliary = nodes.get(f"{name}_unconstrained")
        if isinstance(fn, Delta) and auxiliary is not None and is_unconstrained(prior):
            fn = unwrap(auxiliary["fn"])
            return fn if isinstance(fn, Normal) else None
        return None


def is_unconstrained(prior: Any) -> bool:
    """Whether the guide's real-valued auxiliary *is* the value."""
    transform = biject_to(prior.support)
    while isinstance(transform, IndependentTransform):
        transform = transform.base_transform
    return transform is identity_transform or transform == identity_transform
