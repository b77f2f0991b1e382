"""`gaussian`: mean-field Gaussian weights, filters cut by their signal-to-noise ratio."""

from __future__ import annotations

from pyrobnn.guides.mean_field import MeanField
from pyrobnn.pipeline.method import Method
from pyrobnn.pipeline.recipe import recipes
from pyrobnn.priors.gaussian import Gaussian

# A cold posterior, warmed up in the first round only. At weight 1 a few epochs of mean-field inference pull trained
# weights to the prior faster than the likelihood can answer. Deep normalised networks have more weights per example and
# less to spare; there the means hardly move in the few epochs there are, so the scales must be quick.
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
    title="mean-field Gaussian weights; filter SNR",
    source="Blundell et al. 2015 (Bayes by Backprop); local reparameterisation (Kingma et al. 2015) in small networks",
    cut_where="smallest part of what is left of the layer's squared SNR per cost saved (SNR < 1 without a target)",
    prior=lambda: Gaussian("fan_in"),
    guide=MeanField,
    recipes=COLD,
)
