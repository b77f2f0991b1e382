"""What a posterior says of a channel: the curvature of the likelihood along the channel, averaged over the posterior.

Independent Normals hold one width per weight. Summed over the weights of a channel, their signal-to-noise ratios measure
how large the weights are, layer by layer, and not what the channel does: what the weights do together is in the products
that a mean-field posterior leaves out. The curvature along the direction in which all readers of a channel shrink together
has them: wᵀ F w over the channel's weights w, the gradient summed over these weights, example by example, before it
is squared. Averaged over draws of the posterior it is the expected loss of log-likelihood, to second order.

Where draws have gates off or noise on them, a channel counts by what it is worth when others are missing or disturbed, as they
will be after the cut, and one that is off itself counts nothing.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from pyrobnn.criteria.context import ScoringContext
from pyrobnn.criteria.criterion import Criterion
from pyrobnn.criteria.joint import joint_losses
from pyrobnn.criteria.laplace import SOFT, training_images
from pyrobnn.inference.curvature import GateFisher, gate_fisher
from pyrobnn.likelihoods import Categorical
from pyrobnn.nets.functional import in_place
from pyrobnn.summary.evidence import with_nats
from pyrobnn.summary.reading import guide_runs
from pyrobnn.summary.saliency import FREE_NATS
from pyrobnn.summary.types import ChannelSummary, Posterior

DRAWS = 16  # of the posterior, each with images of its own
IMAGES = 125  # for each draw, or fewer where there are no more
CLOSED = 1e-3  # a channel included less often is off: in 98 of 100 cases it is so in all draws


def expected_fisher(scoring: ScoringContext, draws: int = DRAWS, images: int = IMAGES) -> GateFisher:
    """E_q[F_c] of every channel: the Fisher information of its gate at weights, noise and gates drawn from the posterior.

    With labels of the drawn networks, and of their softened outputs, where there are classes; these rank.

    Args:
        scoring: with model, guide, data and channel table.
        draws: of the posterior.
        images: training images for each of them at the most; with fewer all draws share what there is.

    Returns:
        `diagonal`: `{group: [channels]}`, and `{group: [channels, channels]}`: `softened` for classes, `blocks` else.

    Raises:
        ConfigError: a part of the context is missing, or there are no images.
    """
    model, guide, data, table = (scoring.need(what, "curvature") for what in ("model", "guide", "data", "table"))
    seed = int(scoring.generator(f"curvature {scoring.round + 1}").initial_seed() % 2**31)
    images = max(1, min(images, len(data.train) // draws))
    shown = training_images(scoring.net or model.bare_net, data, draws * images, seed, batch_size=images)
    if len(data.train) < draws:
        shown = cycle(shown)
    net, sites, classes = model.bare_net, set(model.sites()), isinstance(model.likelihood, Categorical)

    def at_draws() -> Generator[Any, None, None]:
        """Batches, each while the network has the tensors of its own draw."""
        for trace, batch in zip(guide_runs(model, guide, draws, seed), shown, strict=False):
            drawn = {name: node["value"].detach() for name, node in trace.nodes.items() if node["type"] == "sample"}
            with in_place(net, model.tensors_at({name: value for name, value in drawn.items() if name in sites})):
                yield batch

    with closing(at_draws()) as batches:
        return gate_fisher(
            net,
            table,
            batches,
            data_size=len(data.train),
            temperature=SOFT if classes else None,
            blocks=not classes,
            likelihood=model.likelihood,
            seed=seed,
        )


def ranked(posterior: Posterior, fisher: GateFisher) -> Posterior:
    """The posterior with channels ranked under a budget by what they lose together, of :func:`expected_fisher`."""
    ranks = (fisher.blocks if fisher.softened is None else fisher.softened) or {}
    channels = {
        name: replace(summary, ranking=joint_losses(ranks[name]).float()) if name in ranks else summary
        for name, summary in posterior.channels.items()
    }
    return replace(posterior, channels=channels)


def curvature(scoring: ScoringContext) -> Posterior:
    """The posterior with ½ :func:`expected_fisher` as its nats, ranked by its products, and the evidence that follows."""
    fisher = expected_fisher(scoring)
    nats = {name: _looked_at(scoring.posterior.channels.get(name), 0.5 * v) for name, v in fisher.diagonal.items()}
    # A gate is no site of the model: no prior of its own.
    return ranked(with_nats(scoring.posterior, nats, dict.fromkeys(nats)), fisher)


def _looked_at(summary: ChannelSummary | None, nats: Tensor) -> Tensor:
    """A channel whose gate was off in every draw has shown nothing: it is the first to go, and not worth nothing."""
    if summary is None or summary.statistic != "inclusion":
        return nats
    return torch.where(summary.snr.to(nats) < CLOSED, nats, nats.clamp_min(FREE_NATS))


CURVATURE = Criterion("curvature", "log evidence for keeping", "nats", curvature, 0.0, "evidence")
