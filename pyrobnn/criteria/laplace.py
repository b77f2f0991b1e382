"""The Laplace posterior of a network's gates: scores of channels from curvature alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from pyrobnn.channels import ChannelTable
from pyrobnn.criteria.context import ScoringContext
from pyrobnn.criteria.criterion import Criterion
from pyrobnn.criteria.joint import joint_losses
from pyrobnn.data import Data
from pyrobnn.errors import ConfigError
from pyrobnn.inference.curvature import GateFisher, gate_fisher
from pyrobnn.likelihoods import Categorical, Likelihood
from pyrobnn.summary.evidence import fit_prior_scale, gate_moments
from pyrobnn.summary.saliency import log_evidence
from pyrobnn.summary.types import ChannelSummary, Posterior, SiteSummary

EXAMPLES = 2000  # images that a Fisher information is estimated from; on ResNet-20, 700 rank nearly as well
SOFT = 4.0  # temperature of the labels that rank


def laplace_gates(
    net: nn.Module,
    data: Data,
    groups: ChannelTable,
    *,
    examples: int = EXAMPLES,
    curvature: str = "diagonal",
    prior_scale: float | None = None,
    temperature: float | None = SOFT,
    draws: int = 100,
    seed: int = 0,
    likelihood: Likelihood | None = None,
) -> Posterior:
    """Posterior of a gate θ_c ~ N(0, s²) on every channel of a trained network, by the Laplace approximation.

    The log-likelihood is −½ (θ − 1)ᵀ F (θ − 1), F the Fisher information of the gates at 1
    (:func:`~pyrobnn.inference.curvature.gate_fisher`). Then θ ~ N(Σ F 1, Σ), Σ = (F + 1/s²)⁻¹; s is that of the
    greatest marginal likelihood, per group, at the fixed point s² = mean(μ² + σ²) (as in MacKay 1992).

    Args:
        net: a trained network as it is to be scored.
        data: its training images are looked at; their number is what the likelihood counts.
        groups: the channel table of the network.
        examples: images to look at.
        curvature: `"diagonal"`, or `"block"` for the full matrix within each group: what is lost without a channel is
            then counted with the others of its group free to make up for it.
        prior_scale: s; None fits it per group.
        temperature: rank channels under a budget by what they lose together (:mod:`~pyrobnn.criteria.joint`) with labels of
            softmax(f / T), which see more than the one class that a trained network is sure of; None ranks by the nats
            themselves. Targets that are not classes are not softened.
        draws: posterior draws to keep of every gate (0 for none).
        seed: of images, labels and draws.
        likelihood: of the targets; class labels by default.

    Returns:
        A posterior with one site `<group>.gate` per group: `snr` is μ/σ, `nats` the log-likelihood lost without the
        channel, ½ F_c, `evidence` the log evidence for keeping it (Savage-Dickey).

    Raises:
        ConfigError: another kind of curvature, a prior scale that is not positive, no images or groups.
    """
    if curvature not in ("diagonal", "block"):
        raise ConfigError(f"the curvature of gates is 'diagonal' or 'block', got {curvature!r}")
    if prior_scale is not None and not prior_scale > 0:
        raise ConfigError(f"the scale of the gates' prior must be positive, got {prior_scale:g}")
    if examples < 1 or not len(data.train):
        raise ConfigError(f"gates are judged by training images: got {examples} of {len(data.train)}")
    likelihood = Categorical() if likelihood is None else likelihood
    classes, block = isinstance(likelihood, Categorical), curvature == "block"
    fisher = gate_fisher(
        net,
        groups,
        training_images(net, data, examples, seed),
        data_size=len(data.train),
        temperature=temperature if classes else None,
        blocks=block or not classes,
        likelihood=likelihood,
        seed=seed,
    )
    ranks = fisher.softened if classes else fisher.blocks
    return gate_posterior(fisher, ranks, block=block, prior_scale=prior_scale, draws=draws, seed=seed)


def training_images(
    net: nn.Module, data: Data, examples: int, seed: int, batch_size: int = 100
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of the training images and their labels on the network's device, in an order of the seed's, `examples` in all."""
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    generator, left = torch.Generator().manual_seed(seed), examples
    for x, y in data.train.batches(batch_size, generator=generator, device=device):
        yield x[:left], y[:left]
        left -= len(x)
        if left <= 0:
            return


def gate_posterior(
    fisher: GateFisher,
    ranks: Mapping[str, Tensor] | None = None,
    *,
    block: bool = False,
    prior_scale: float | None = None,
    draws: int = 0,
    seed: int = 0,
) -> Posterior:
    """The Gaussian posterior of gates with this Fisher information; see :func:`laplace_gates`.

    Args:
        fisher: of the gates.
        ranks: `{group: [channels, channels]}`, of which joint losses rank channels under a budget; None: the nats do.
        block: the posterior has the blocks of the Fisher information, not its diagonal alone.
        prior_scale, draws, seed: as there.
    """
    generator = torch.Generator().manual_seed(seed)
    sites, channels, kept = {}, {}, {}
    for name, diagonal in fisher.diagonal.items():
        information = fisher.blocks[name] if block and fisher.blocks is not None else torch.diag(diagonal)
        scale = fit_prior_scale(information) if prior_scale is None else prior_scale
        loc, covariance = gate_moments(information, scale)
        sd = covariance.diagonal().sqrt()
        site = f"{name}.gate"
        sites[site] = SiteSummary(site, loc.float(), sd.float(), ("channel",), "channel", name)
        channels[name] = ChannelSummary(
            name,
            (loc.abs() / sd).float(),
            # Without blocks 1/σ² − 1/s² is F_c; with them what is left of it once the others have moved.
            (0.5 * (sd.pow(-2) - scale**-2).clamp_min(0.0)).float(),
            "snr",
            torch.ones(len(diagonal), dtype=torch.bool),
            evidence=log_evidence(loc, sd, scale).float(),
            loc=loc.float(),
            scale=sd.float(),
            ranking=None if ranks is None else joint_losses(ranks[name]).float(),
        )
        if draws:
            noise = torch.randn(draws, len(diagonal), generator=generator, dtype=torch.float64)
            kept[site] = (loc + noise @ torch.linalg.cholesky(covariance).T).float()
    widths = {name: (len(c.snr), len(c.snr)) for name, c in channels.items()}
    return Posterior(sites, channels, draws=kept, net_widths=widths)


def laplace(scoring: ScoringContext) -> Posterior:
    """:func:`laplace_gates` of the network as it is; reads no posterior."""
    net, data, table = (scoring.need(what, "laplace") for what in ("net", "data", "table"))
    seed = int(scoring.generator(f"laplace {scoring.round + 1}").initial_seed() % 2**31)
    likelihood = None if scoring.model is None else scoring.model.likelihood
    return laplace_gates(net, data, table, seed=seed, likelihood=likelihood)


LAPLACE = Criterion("laplace", "log evidence for keeping", "nats", laplace, 0.0, "evidence")
