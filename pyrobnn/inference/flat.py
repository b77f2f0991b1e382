"""The ELBO of mean-field guides under independent priors, computed by few large operations.

One draw and one reparameterisation for all sites, one closed-form KL for all weights under Gaussian priors and one
for each other prior that sites share. No trace is made. :class:`~pyrobnn.inference.elbo.ELBO` stays the definition;
where it needs more than this (poutine handlers, weights per coordinate, a guide or prior of another kind), it is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from pyrobnn.guides.flat import Flat, views_like
from pyrobnn.guides.function import NoLatents
from pyrobnn.guides.mean_field import MeanField
from pyrobnn.inference.elbo import ELBO, Parts
from pyrobnn.model import BayesianModel
from pyrobnn.moments import Moments
from pyrobnn.priors.base import Prior

CHUNK = 1 << 16  # entries


@dataclass(frozen=True)
class Run:
    """Consecutive sites under one kind of prior: entries `start` to `stop` of the flat vectors.

    `gaussian` runs have a Normal for each site, other runs one distribution for all of it.
    """

    sites: tuple[str, ...]
    first: int  # place of the first site among all
    start: int
    stop: int
    gaussian: bool
    sizes: tuple[int, ...]
    like: Tensor | None  # the site's mean, where it has its distribution to itself
    centred: bool = False  # Gaussians at 0


class FlatELBO:
    """Evaluates what :meth:`~pyrobnn.inference.elbo.ELBO.parts` does, for one model and guide.

    Args:
        elbo: whose estimator, particles and weights are used.
        model, guide: a pair that :func:`flat_elbo` has found fit; no guide for a plain network.
        runs: what :func:`_runs` found.
    """

    def __init__(self, elbo: ELBO, model: BayesianModel, guide: MeanField | None, runs: list[Run]) -> None:
        self.elbo, self.model, self.guide, self.runs = elbo, model, guide, runs
        like = next(iter(guide.parameters())) if guide is not None else torch.zeros(())
        self._ones = [torch.ones(len(run.sizes), dtype=like.dtype, device=like.device) for run in runs]
        # On a CPU large sites are worked on in pieces that fit a core's cache.
        self._pieces = [_pieces(run.sizes, CHUNK if like.device.type == "cpu" else None) for run in runs]
        self._rows = [torch.tensor([row for row, _ in rows], device=like.device) for rows in self._pieces]
        self._counts = [
            torch.tensor([size for _, size in rows], dtype=like.dtype, device=like.device) for rows in self._pieces
        ]

    @property
    def usable(self) -> bool:
        """False while an effect handler listens, or a KL is weighted per coordinate."""
        weights = self.elbo.site_weights.values()
        return not _PYRO_STACK and not any(isinstance(w, Tensor) and w.dim() for w in weights)

    def parts(self, x: Any, y: Any) -> Parts:
        """Negative log-likelihood and KL by kind of prior, averaged over the particles."""
        elbo, model = self.elbo, self.model
        if self.guide is None:
            output, part = self._likelihood({}, x, y)
            return Parts(part, {}, output, set())
        flat = self.guide.flat()
        assert flat is not None and isinstance(model.prior, Prior)
        view = model.view()
        priors = model.prior.independent(view)
        assert priors is not None
        pieces = [run.stop - run.start for run in self.runs]
        whole = flat.loc.flat(), flat.log_scale.flat()
        # A split has a gradient of its own, another pass over all weights.
        locs, log_scales = ((v,) for v in whole) if len(pieces) == 1 else (v.split(pieces) for v in whole)
        nll: Tensor | None = None
        kl: dict[str, Tensor] = {}
        for _ in range(elbo.num_particles):
            noises: list[Tensor | None] = [None] * len(pieces)  # where outputs are sampled, weights are not
            if elbo.estimator == "weight":
                noises = list(torch.randn(sum(pieces), dtype=locs[0].dtype, device=locs[0].device).split(pieces))
            values: dict[str, Tensor] = {}
            for k in range(len(pieces)):
                values |= self._run(k, flat, locs[k], log_scales[k], noises[k], priors, kl)
            output, part = self._likelihood(model.prior.place(view, values), x, y)
            nll = part if nll is None else nll + part
        assert nll is not None
        return Parts(nll / elbo.num_particles, kl, output, set(flat.names))

    def _likelihood(self, tensors: dict[str, Tensor], x: Any, y: Any) -> tuple[Tensor, Tensor]:
        """The network's output, and the negative log-likelihood scaled to all examples."""
        model = self.model
        output, distribution, targets, size = model.observed(model.bare_net, tensors, x, y)
        assert targets is not None
        if self.elbo.estimator == "moments":
            output = getattr(output, "loc", output)
        return output, -distribution.log_prob(targets).sum() * (model.data_size / size)

    def _run(
        self,
        k: int,
        flat: Flat,
        loc: Tensor,
        log_scale: Tensor,
        noise: Tensor | None,
        priors: dict[str, Any],
        kl: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """Values of the sites of one run for the network; its KL goes into `kl`."""
        run, weight, weighted = self.runs[k], self._ones[k], self.elbo.site_weights
        if any(site in weighted for site in run.sites):
            weight = torch.stack([_number(weighted.get(site, 1.0), loc) for site in run.sites])
        if run.gaussian:
            centres, widths = ([_scalar(getattr(priors[s], part)) for s in run.sites] for part in ("loc", "scale"))
            by_site = torch.stack([torch.stack(centres), torch.stack(widths), weight])
            table = torch.cat([by_site.index_select(1, self._rows[k]), self._counts[k][None]])
            sizes = tuple(size for _, size in self._pieces[k])
            drawn, total = _Gaussian.apply(loc, log_scale, noise, table, sizes, run.centred)
        else:
            mean, scale = loc, log_scale.exp()
            drawn = scale.square() if noise is None else torch.addcmul(mean, scale, noise)
            if run.like is not None:
                mean, scale = views_like(mean, [run.like])[0], views_like(scale, [run.like])[0]
            each = kl_divergence(Normal(mean, scale, validate_args=False), priors[run.sites[0]])
            if weight is self._ones[k]:
                total = each.sum()
            else:
                total = (weight * torch.stack([part.sum() for part in each.reshape(-1).split(run.sizes)])).sum()
        kl[f"{type(priors[run.sites[0]]).__name__} {k}"] = total  # in closed form: the same for every particle
        own = flat.loc.parameters[run.first : run.first + len(run.sites)]
        tensors = zip(run.sites, views_like(drawn, own), strict=True)
        if noise is not None:
            return dict(tensors)
        means = views_like(loc, own)
        return {
            name: self._moments(name, mean, variance) for mean, (name, variance) in zip(means, tensors, strict=True)
        }

    def _moments(self, name: str, mean: Tensor, variance: Tensor) -> Tensor:
        elbo = self.elbo
        return Moments.weight(
            mean,
            variance,
            elbo.estimator,  # type: ignore[arg-type]
            name=name,
            shared=name in elbo.shared,
            on_shared=elbo.shared.add,
        )


def flat_elbo(elbo: ELBO, model: BayesianModel, guide: Any) -> FlatELBO | None:
    """The fast evaluation of this pair, or None where the traced ELBO has to do."""
    ours = type(model).forward is BayesianModel.forward
    ours = (
        ours
        and elbo.estimator != "example"
        and type(elbo).parts is ELBO.parts
        and type(elbo)._get_trace is ELBO._get_trace
    )
    if ours and type(guide) is NoLatents and model.prior is None and elbo.num_particles == 1:
        return FlatELBO(elbo, model, None, [])
    mean_field = isinstance(guide, MeanField) and type(guide).forward is MeanField.forward
    if not ours or not mean_field or not isinstance(model.prior, Prior):
        return None
    flat, priors = guide.flat(), model.prior.independent(model.view())
    if flat is None or priors is None or list(priors) != flat.names:
        return None
    runs = _runs(flat, priors)
    if runs is None:
        return None
    flat.loc.flat(), flat.log_scale.flat()  # packed now, before an optimiser sees how they lie
    return FlatELBO(elbo, model, guide, runs)


def _runs(flat: Flat, priors: dict[str, Any]) -> list[Run] | None:
    """The sites by kind of prior; None where a KL is not known in closed form."""
    runs: list[Run] = []
    start = 0
    kinds: list[Any] = []
    for place, (name, size, parameter) in enumerate(zip(flat.names, flat.loc.sizes, flat.loc.parameters, strict=True)):
        p = priors[name]
        # Under one distribution for several sites there are few coordinates each (channel noise): one KL for all.
        alone = sum(other is p for other in priors.values()) == 1
        # Not a subclass (those have KLs of their own), and one number for the whole site.
        gaussian = type(p) in (Normal, dist.Normal) and alone and _constant(p.loc) and _constant(p.scale)
        kind = "gaussian" if gaussian else id(p)
        centred = gaussian and not bool(_scalar(p.loc))
        try:
            kl_divergence(Normal(torch.zeros(()), torch.ones(())), p)
        except NotImplementedError:
            return None
        if kinds and kinds[-1] == kind:
            last = runs[-1]
            runs[-1] = Run(
                (*last.sites, name),
                last.first,
                last.start,
                start + size,
                gaussian,
                (*last.sizes, size),
                None,
                last.centred and centred,
            )
        else:
            runs.append(
                Run((name,), place, start, start + size, gaussian, (size,), parameter if alone else None, centred)
            )
            kinds.append(kind)
        start += size
    return runs


def _constant(value: Tensor) -> bool:
    return value.numel() == 1 or not any(value.stride())


def _scalar(value: Tensor) -> Tensor:
    """The number behind an expanded tensor."""
    return value.reshape(-1)[0] if value.dim() else value


def _number(weight: float | Tensor, like: Tensor) -> Tensor:
    return weight if isinstance(weight, Tensor) else torch.full((), weight, dtype=like.dtype, device=like.device)


def _pieces(sizes: tuple[int, ...], chunk: int | None) -> list[tuple[int, int]]:
    """`(site, entries)` of each piece; without a chunk a site is one."""
    found = []
    for row, size in enumerate(sizes):
        whole, rest = divmod(size, chunk or size)
        found += [(row, chunk or size)] * whole + [(row, rest)] * (rest > 0)
    return found


class _Gaussian(torch.autograd.Function):
    """A draw of N(μ, σ²), or σ² where there is no noise, and Σ_j w_j KL(N(μ, σ²) ‖ N(m_j, s_j²)) over the pieces j.

    Written out, with its gradient, and piece by piece, because at a hundred examples a step passes over the weights are
    what it costs. `table` holds m, s, w and the number of entries, `[4, pieces]`; σ = exp(log σ).
    """

    @staticmethod
    def forward(
        ctx: Any,
        loc: Tensor,
        log_scale: Tensor,
        noise: Tensor | None,
        table: Tensor,
        sizes: tuple[int, ...],
        centred: bool,
    ) -> tuple[Tensor, Tensor]:
        centre, width, weight, count = table
        scale, drawn = torch.empty_like(loc), torch.empty_like(loc)
        far, wide, logs = [], [], []
        parts = zip(
            *(v.split(sizes) for v in (loc, log_scale, scale, drawn, loc if noise is None else noise)), strict=True
        )
        for mean, log_sd, sd, out, epsilon in parts:
            torch.exp(log_sd, out=sd)
            if noise is None:
                torch.mul(sd, sd, out=out)
            else:
                torch.addcmul(mean, sd, epsilon, out=out)
            far.append(torch.stack([torch.dot(mean, mean), mean.sum()]))
            wide.append(torch.dot(sd, sd))
            logs.append(log_sd.sum())
        square, total = torch.stack(far).unbind(1)
        distance = square - centre * (2 * total - centre * count)  # Σ (μ − m)²
        squares = (distance + torch.stack(wide)) / (2 * width.square())
        kl = (weight * (count * (width.log() - 0.5) - torch.stack(logs) + squares)).sum()
        ctx.save_for_backward(loc, scale, table, *([] if noise is None else [noise]))
        ctx.sizes, ctx.centred = sizes, centred
        return drawn, kl

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_kl: Tensor) -> Any:
        loc, scale, table, *noise = ctx.saved_tensors
        centre, width, weight, _ = table
        lost = grad_kl * weight
        factors = lost / width.square()
        to_loc, to_scale = torch.empty_like(loc), torch.empty_like(loc)
        vectors = (loc, scale, to_loc, to_scale, grad, noise[0] if noise else scale)
        columns = (factors, lost, centre)
        parts = zip(*(v.split(ctx.sizes) for v in vectors), *(c.unbind() for c in columns), strict=True)
        for mean, sd, here, there, own, epsilon, factor, weighted, m in parts:
            away = mean if ctx.centred else mean - m
            if noise:
                torch.addcmul(own, away, factor, out=here)
            else:
                torch.mul(away, factor, out=here)
            # σ (g ε + w σ / s²) − w for a draw; σ² (2 g + w / s²) − w for a variance
            torch.mul(own, epsilon, out=there)
            if not noise:
                there.mul_(2.0)
            there.addcmul_(sd, factor).mul_(sd).sub_(weighted)
        return to_loc, to_scale, None, None, None, None
