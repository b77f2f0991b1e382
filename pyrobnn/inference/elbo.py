"""The ELBO with negative log-likelihood and KL apart, and the KL in closed form where one is known.

Stock `TraceMeanField_ELBO` looks up KL(Delta, p) for the sites of a stock AutoGuide and so loses
the Delta's `log_density`, the Jacobian of the constraint: on positive or bounded sites its loss is
off by E[log |dz/du|]. Here a site whose guide distribution is a Delta (or has no registered KL)
contributes log q - log p at the drawn value, Jacobian and auxiliary site included.

Traces come from Pyro's own hooks (`_get_trace`, `_get_traces`), with its validation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import ELBO as PyroELBO
from pyro.infer.util import is_validation_enabled
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_model_guide_match, check_site_shape
from torch import Tensor
from torch.distributions import kl_divergence

from pyrobnn.distributions.base import base_distribution
from pyrobnn.errors import ConfigError, NumericalError
from pyrobnn.inference.example_noise import by_example
from pyrobnn.moments import MomentMessenger
from pyrobnn.moments.handler import is_unconstrained

Weights = Mapping[str, float | Tensor]


@dataclass
class Parts:
    """One evaluation of the ELBO's terms, in nats for the whole data set.

    Attributes:
        nll: expected negative log-likelihood, scaled to N examples.
        kl: KL per latent site.
        output: what the model returned (the logits), of the last particle.
        closed_form: the sites whose KL did not use the drawn value.
    """

    nll: Tensor
    kl: dict[str, Tensor]
    output: Any
    closed_form: set[str] = field(default_factory=set)

    def total_kl(self, like: Tensor) -> Tensor:
        """Sum over sites (0 without latent sites)."""
        return sum(self.kl.values(), torch.zeros((), device=like.device))


class ELBO(PyroELBO):
    """Evidence lower bound with KL weight, per-site (or per-channel) weights and an estimator.

    Works with torch and with Pyro optimisers: `ELBO()(model, guide)` is an `nn.Module` for torch optimisers, and
    `SVI(model, guide, optim, loss=ELBO())` takes it like any Pyro loss.

    Args:
        num_particles: draws per step.
        kl_weight: factor on the whole KL (1 is the ELBO; below 1 is a cold posterior).
        site_weights: `{site: factor}`; a factor is a number or a tensor that broadcasts against the
            site's KL per coordinate, e.g. a price per channel.
        estimator: `"weight"` samples weights (and channel noise once for the batch); `"example"` samples channel noise for
            every example (:mod:`pyrobnn.inference.example_noise`); `"local"` samples pre-activations (local
            reparameterisation, Kingma 2015); `"moments"` carries mean and variance to the output.
        options: as for :class:`pyro.infer.ELBO` (`max_plate_nesting`, `vectorize_particles`, `retain_graph`).

    Raises:
        ConfigError: an unknown estimator, no particles, a KL weight that is negative or not finite, or a guide site that
            cannot be reparameterised.
        NumericalError: a log-density or KL that is not finite, naming its site.
    """

    def __init__(
        self,
        num_particles: int = 1,
        *,
        kl_weight: float = 1.0,
        site_weights: Weights | None = None,
        estimator: str = "weight",
        **options: Any,
    ) -> None:
        if num_particles < 1 or not isinstance(num_particles, int):
            raise ConfigError(f"num_particles must be a whole number of at least 1, got {num_particles!r}")
        if not isinstance(kl_weight, Tensor) and not 0 <= kl_weight < math.inf:
            raise ConfigError(f"kl_weight must be finite and not negative, got {kl_weight!r}")
        super().__init__(num_particles=num_particles, **options)
        if estimator not in ("weight", "example", "local", "moments"):
            raise ConfigError(f"estimator must be 'weight', 'example', 'local' or 'moments', got {estimator!r}")
        self.kl_weight: float | Tensor = kl_weight
        self.site_weights: dict[str, float | Tensor] = dict(site_weights or {})
        self.estimator = estimator
        # Weights that the network uses more than once, found on the way: they are sampled, so that
        # their uses share one draw.
        self.shared: set[str] = set()

    def parts(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> Parts:
        """Negative log-likelihood and KL per site, averaged over the particles."""
        nll: Tensor | None = None
        kl: dict[str, Tensor] = {}
        closed: set[str] = set()
        output = None
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            output = model_trace.nodes["_RETURN"]["value"]
            if self.estimator == "moments":
                output = getattr(output, "loc", output)  # what terms and accuracy look at
            observed = [s for s in model_trace.nodes.values() if s["type"] == "sample" and s["is_observed"]]
            part = -sum((_log_prob(site) for site in observed), torch.zeros(()))
            nll = part if nll is None else nll + part
            for name, value, exact in self._kl_terms(model_trace, guide_trace):
                kl[name] = kl[name] + value if name in kl else value
                if exact:
                    closed.add(name)
        assert nll is not None
        n = self.num_particles
        return Parts(nll / n, {name: value / n for name, value in kl.items()}, output, closed)

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        """One run of the guide and of the model against it, the network seeing what the estimator hands it.

        Log-densities are computed where a term needs them.
        """
        unwrapped = poutine.unwrap(guide)
        if isinstance(unwrapped, poutine.messenger.Messenger):  # an effect-handler guide runs the model itself
            returned = guide(*args, **kwargs)
            model_trace, guide_trace = unwrapped.get_traces()  # type: ignore[attr-defined]
            model_trace.add_node("_RETURN", name="_RETURN", type="return", value=returned)
        else:
            guide_trace = poutine.trace(guide, graph_type="flat").get_trace(*args, **kwargs)
            with self._estimated(model, guide_trace, args) as seen:
                replayed = poutine.replay(seen, trace=guide_trace)
                model_trace = poutine.trace(replayed, graph_type="flat").get_trace(*args, **kwargs)
        if is_validation_enabled():
            check_model_guide_match(model_trace, guide_trace, self.max_plate_nesting)
        model_trace, guide_trace = prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace)
        if is_validation_enabled():
            for site in (*model_trace.nodes.values(), *guide_trace.nodes.values()):
                if site["type"] == "sample":
                    # A log-density has the shape of the batch; that of a latent site need not be computed for it.
                    log_prob = torch.zeros(()).expand(site["fn"].batch_shape)  # type: ignore[attr-defined]
                    check_site_shape({**site, "log_prob": log_prob}, self.max_plate_nesting)
        return model_trace, guide_trace

    def _estimated(self, model: Any, guide_trace: Any, args: Any) -> AbstractContextManager[Any]:
        """The model as the estimator has it."""
        if self.estimator == "weight":
            return nullcontext(model)
        if self.estimator == "example":
            return by_example(model, guide_trace, len(args[-1]))
        return nullcontext(MomentMessenger(guide_trace, mode=self.estimator, shared=self.shared)(model))  # type: ignore[arg-type]

    def _kl_terms(self, model_trace: Any, guide_trace: Any) -> list[tuple[str, Tensor, bool]]:
        terms = []
        claimed = set()
        for name, site in model_trace.nodes.items():
            if site["type"] != "sample" or site["is_observed"]:
                continue
            if name not in guide_trace.nodes:
                continue  # drawn from the prior in both: its KL is 0
            q = guide_trace.nodes[name]
            auxiliary = guide_trace.nodes.get(f"{name}_unconstrained")
            weight = self.site_weights.get(name, 1.0)
            _require_rsample(name, q["fn"])  # also with a closed form: the likelihood's gradient needs it
            exact = _closed_form(q["fn"], site, auxiliary, weight)
            if exact is None:
                if isinstance(weight, Tensor) and weight.dim():
                    raise ConfigError(f"site {name!r}: a weight per coordinate needs a closed-form KL")
                value = weight * (_log_prob(q) - _log_prob(site))
                if auxiliary is not None:
                    _require_rsample(name, auxiliary["fn"])
                    value = value + weight * _log_prob(auxiliary)
            else:
                value = scale_and_mask(exact, site["scale"], site["mask"]).sum()
            if auxiliary is not None:
                claimed.add(auxiliary["name"])
            terms.append((name, value, exact is not None))
        # What only the guide has (the joint latent of an AutoContinuous guide) enters with its density.
        for name, site in guide_trace.nodes.items():
            if site["type"] == "sample" and name not in model_trace.nodes and name not in claimed:
                _require_rsample(name, site["fn"])
                if self.site_weights:
                    raise ConfigError(
                        f"site weights need a density for each site, and this guide has one for all ({name}): take AutoNormal or MeanField"
                    )
                terms.append((name, _log_prob(site), False))
        return terms

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Negative ELBO in nats for the whole data set, with gradients."""
        parts = self.parts(model, guide, *args, **kwargs)
        loss = parts.nll + self.kl_weight * parts.total_kl(parts.nll)
        if not torch.isfinite(loss):
            check_finite(parts)
        return loss

    @torch.no_grad()
    def loss(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """Negative ELBO as a number."""
        return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """What `pyro.infer.SVI` calls: backward, then the loss as a number."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return float(loss.detach())


def check_finite(parts: Parts) -> None:
    """Raise NumericalError naming the first term that is not finite."""
    for name, value in parts.kl.items():
        if not torch.isfinite(value):
            raise NumericalError(
                f"the KL of site {name!r} is {float(value.detach())}: lower the learning rate or clip gradients"
            )
    if not torch.isfinite(parts.nll):
        raise NumericalError(
            f"the log-likelihood at site 'obs' is {-float(parts.nll.detach())}: lower the learning rate or clip gradients"
        )


def _log_prob(site: Any) -> Tensor:
    value = site["fn"].log_prob(site["value"])
    return scale_and_mask(value, site["scale"], site["mask"]).sum()


def _require_rsample(name: str, fn: Any) -> None:
    if not getattr(fn, "has_rsample", True):
        raise ConfigError(
            f"guide site {name!r} has distribution {type(fn).__name__}, which cannot be reparameterised: "
            "use a relaxed distribution, or train with pyro.infer.Trace_ELBO"
        )


def _closed_form(
    q: Any, site: dict[str, Any], auxiliary: dict[str, Any] | None, weight: float | Tensor
) -> Tensor | None:
    """Weighted KL(q, p), summed to the site's batch shape, where it is known; else None."""
    outer, p = site["fn"], base_distribution(site["fn"])
    q = base_distribution(q)
    if isinstance(q, dist.Delta):
        # AutoNormal on a real site: identity transform, so the auxiliary Normal is the posterior.
        if auxiliary is None or not is_unconstrained(outer) or not _same(q.v, auxiliary["value"]):
            return None
        q = base_distribution(auxiliary["fn"])
    try:
        kl = kl_divergence(q, p)
    except NotImplementedError:
        return None
    kl = kl.expand(site["value"].shape[: site["value"].dim() - p.event_dim])
    inner = outer.event_dim - p.event_dim  # dims that an Independent declared dependent
    kl = weight * kl
    return kl.sum(dim=tuple(range(-inner, 0))) if inner else kl


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are one, without reading them."""
    return a is b or (a.shape == b.shape and a.data_ptr() == b.data_ptr())
