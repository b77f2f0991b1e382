"""`bayes-l1`: Bayesian CNN with L1 and capped-L1 filter scores (Shaikh et al. 2024).

Found in the abstracts of this paper and of its deterministic ancestor (Kumar et al. 2021): a CNN trained
by Bayes by Backprop, filters scored by L1 and capped L1 norms, unimportant ones removed step by step, the
norms also controlling regularisation. Reconstructed: how both norms are weighted, the cap, the share per
round, and the norms as a prior. The expectation of the norms under the posterior is ours.
"""

from __future__ import annotations

from collections.abc import Callable

from pyrobnn.criteria.context import ScoringContext
from pyrobnn.criteria.scores import capped_l1_scores, moments_of, scored
from pyrobnn.errors import ConfigError
from pyrobnn.guides.mean_field import MeanField
from pyrobnn.methods.gaussian import COLD
from pyrobnn.pipeline.method import Method
from pyrobnn.pipeline.pipelines import iterative
from pyrobnn.priors.base import Prior
from pyrobnn.priors.capped import CappedL1
from pyrobnn.priors.gaussian import Gaussian, ScaleMixture
from pyrobnn.summary.reading import site_moments
from pyrobnn.summary.types import Posterior

PRIORS: dict[str, Callable[[], Prior]] = {
    "capped-l1": CappedL1,
    "gaussian": lambda: Gaussian("fan_in"),
    "mixture": ScaleMixture,
}


def bayes_l1(prior: str = "capped-l1", *, mix: float = 0.5, expected: bool = True, name: str = "bayes-l1") -> Method:
    """The method with one of its priors and one reading of its score.

    Args:
        prior: `"capped-l1"` (the scored norm as a density), `"gaussian"` or `"mixture"` (the scale mixture
            of Blundell et al. 2015).
        mix: κ, the part of the capped norm in the score.
        expected: score the expected norms (folded normal), else the norms of the posterior means.
        name: of the result, for reports.

    Raises:
        ConfigError: an unknown prior, or `mix` outside [0, 1].
    """
    if prior not in PRIORS:
        raise ConfigError(f"bayes-l1 has priors {', '.join(PRIORS)}, got {prior!r}")
    if not 0 <= mix <= 1:
        raise ConfigError(f"mix, the part of the capped norm, must lie in [0, 1], got {mix}")

    def score(scoring: ScoringContext) -> Posterior:
        model, table = scoring.need("model"), scoring.need("table")
        moments = {**moments_of(model.net), **site_moments(model, scoring.guide)}
        return scored(scoring.posterior, capped_l1_scores(table, moments, mix, expected), table)

    return Method(
        name=name,
        title="mean-field Gaussian weights; L1 and capped-L1 filter norms, expected under the posterior",
        source="Shaikh et al. 2024, Kumar et al. 2021 (abstracts); weighting, cap and prior reconstructed",
        cut_where="smallest part of what is left of the layer's norm per cost saved (lowest 20 % a round without a target)",
        prior=PRIORS[prior],
        guide=MeanField,
        settings={"prior": prior, "mix": mix, "expected": expected},
        rule="fraction",
        threshold=0.8,
        recipes=COLD,
        score=score,
        stops=True,
        pipeline=iterative,
    )


METHOD = bayes_l1()
