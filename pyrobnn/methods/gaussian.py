"""`gaussian`: mean-field Gaussian weights; a channel is worth what the likelihood is expected to lose along it.

Found: prior, guide and objective (Blundell et al. 2015). Ours: the read-off
(:mod:`pyrobnn.criteria.curvature`); ratios of means to widths, weight by weight, rank channels as their norms do.
"""

from __future__ import annotations

from pyrobnn.criteria.curvature import CURVATURE
from pyrobnn.guides.mean_field import MeanField
from pyrobnn.pipeline.method import Method
from pyrobnn.pipeline.recipe import recipes
from pyrobnn.priors.gaussian import Gaussian

# A cold posterior, warmed up in the first round only. At weight 1 a few epochs of mean-field inference pull trained
# weights to the prior faster than the likelihood can answer. Deep normalised networks have more weights per example and
# less to spare; there the means hardly move in the few epochs there are, so the scales need a high learning rate.
COLD = recipes(
    rounds=8,
    infer_share=0.25,
    kl_warmup=0.5,
    guide={"init_scale": 0.1},
    small={"infer.guide_lr": 1e-3, "estimator": "local", "kl_weight": 0.1},
    deep={"infer.guide_lr": 2e-4, "kl_weight": 0.01, "guide.scale_lr": 25.0},
)

METHOD = Method(
    name="gaussian",
    title="mean-field Gaussian weights; curvature along each channel",
    source="Blundell et al. 2015 (Bayes by Backprop); local reparameterisation (Kingma et al. 2015) in small networks",
    cut_where="fewest softened nats per cost, the curvature along the channel expected under the posterior (without a target: while the evidence rises)",
    prior=lambda: Gaussian("fan_in"),
    guide=MeanField,
    rule="evidence",
    recipes=COLD,
    score=CURVATURE,
)
