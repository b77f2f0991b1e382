"""What a posterior of weights or gates says of a channel: the curvature of the likelihood along the channel, averaged over it.

Independent Normals hold one width per weight. Summed over the weights of a channel, their signal-to-noise ratios measure
how large the weights are, layer by layer, and not what the channel does: what the weights do together is in the products
that a mean-field posterior leaves out. The curvature along the direction in which all readers of a channel shrink together
has them: wᵀ F w over the channel's weights w, the gradient summed over these weights, example by example, before it
is squared. Averaged over draws of the posterior it is the expected loss of log-likelihood, to second order.

Where draws have gates off, a channel counts by what it is worth when others are missing, as they will be after the cut,
and one that is off itself counts nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyrobnn.criteria.context import ScoringContext
from pyrobnn.criteria.criterion import Criterion
from pyrobnn.criteria.laplace import training_images
from pyrobnn.inference.curvature import gate_fisher
from pyrobnn.nets.functional import in_place
from pyrobnn.summary.evidence import with_nats
from pyrobnn.summary.reading import guide_runs
from pyrobnn.summary.types import Posterior

DRAWS = 16  # of the posterior, each with images of its own
IMAGES = 125  # for each draw


def expected_loss(scoring: ScoringContext, draws: int = DRAWS, images: int = IMAGES) -> dict[str, Tensor]:
    """½ E_q[F_c] of every channel in nats, `{group: [channels]}`: F_c the Fisher information of its gate at drawn weights.

    Args:
        scoring: with model, guide, data and channel table.
        draws: of the weights.
        images: training images for each of them.

    Raises:
        ConfigError: a part of the context is missing, or there are no images.
    """
    model, guide, data, table = (scoring.need(what, "curvature") for what in ("model", "guide", "data", "table"))
    seed = int(scoring.generator(f"curvature {scoring.round + 1}").initial_seed() % 2**31)
    shown = training_images(scoring.net or model.bare_net, data, draws * images, seed, batch_size=images)
    total = {group.name: torch.zeros(group.channels, dtype=torch.float64) for group in table}
    count, net, sites = 0, model.bare_net, set(model.sites())
    for trace, batch in zip(guide_runs(model, guide, draws, seed), shown, strict=False):
        drawn = {name: node["value"].detach() for name, node in trace.nodes.items() if node["type"] == "sample"}
        tensors = model.tensors_at({name: value for name, value in drawn.items() if name in sites})
        with in_place(net, tensors):
            fisher = gate_fisher(
                net, table, [batch], data_size=len(data.train), likelihood=model.likelihood, seed=seed + count
            )
        for name, value in fisher.diagonal.items():
            total[name] += len(batch[0]) * 0.5 * value
        count += len(batch[0])
    return {name: (value / max(1, count)).float() for name, value in total.items()}


def curvature(scoring: ScoringContext) -> Posterior:
    """The posterior with :func:`expected_loss` as its nats, and the evidence that follows from them."""
    nats = expected_loss(scoring)
    return with_nats(
        scoring.posterior, nats, dict.fromkeys(nats)
    )  # a gate is no site of the model: no prior of its own


CURVATURE = Criterion("curvature", "log evidence for keeping", "nats", curvature, 0.0, "evidence")
