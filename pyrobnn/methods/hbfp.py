"""`hbfp`: History Based Filter Pruning (Basha et al. 2024), and its reading on a posterior.

Found in the authors' code: the L1 norm of every filter is recorded over training; pairs of filters with
the smallest Manhattan distance of their trajectories are chosen in each layer; a regulariser is to make
them more similar; one of each pair goes; the network is trained again and keeps a new history.
Ours: a regulariser that has a gradient, several records an epoch, budgets (the pair's distance is what a
filter's removal loses, see :meth:`~pyrobnn.criteria.pairs.Elimination.parts`), and `hbfp-bayes`, whose
history is of expected norms under a mean-field posterior.
"""

from __future__ import annotations

from functools import partial

import torch

from pyrobnn.criteria.context import ScoringContext
from pyrobnn.criteria.scores import scored
from pyrobnn.guides.function import NoLatents
from pyrobnn.guides.mean_field import MeanField
from pyrobnn.inference.callbacks import Callback
from pyrobnn.methods.history import NormHistory, SimilarPairs
from pyrobnn.pipeline.context import Context
from pyrobnn.pipeline.method import Method
from pyrobnn.pipeline.pipelines import iterative
from pyrobnn.pipeline.recipe import recipes
from pyrobnn.pipeline.stages import Stage
from pyrobnn.pipeline.state import State
from pyrobnn.pipeline.widths import by_scores, evenly, planned
from pyrobnn.priors.gaussian import Gaussian
from pyrobnn.summary.types import Posterior

SHARE = 0.8  # of every layer's filters that a round keeps without a target


def pair_fraction(context: Context) -> float:
    """The share of a layer's filters that a round can be expected to cut: costs go with products of two widths."""
    config = context.config
    if not config.has_budget:
        return 1 - SHARE
    return float(1 - min(config.budget.values()) ** (0.5 / len(context.epochs.infer)))


def by_history(context: Context, even: bool = False) -> list[Stage]:
    """To a budget by widths that are planned once; otherwise the loop of the paper."""
    if context.config.has_budget:
        return planned(context, evenly if even else by_scores)
    return iterative(context)


def _score(scoring: ScoringContext) -> Posterior:
    """What a filter's removal loses is the distance of its pair; the history goes with the posterior."""
    history: NormHistory = scoring.callback(NormHistory, "hbfp")
    similar: SimilarPairs = scoring.callback(SimilarPairs, "hbfp")
    plan, table = scoring.need("plan", "hbfp"), scoring.need("table", "hbfp")
    orders = similar.orders.items()
    scores, parts = {name: order.scores() for name, order in orders}, {name: order.parts() for name, order in orders}
    posterior = scored(scoring.posterior, scores, table, parts)
    posterior.trajectories = [
        {
            name: {
                "norms": history.norms[name],
                "pairs": order.pairs,
                "units": torch.as_tensor(plan.keep[name], dtype=torch.long),
            }
            for name, order in orders
        }
    ]
    return posterior


def hbfp(
    *,
    bayesian: bool = False,
    drop: str = "lower",
    gradient: bool = True,
    weight: float = 0.1,
    distance: str = "norm",
    per_epoch: int = 16,
    even: bool = False,
    name: str | None = None,
) -> Method:
    """The method with its options.

    Args:
        bayesian: mean-field Gaussian weights with expected norms; else point weights (MAP, the Gaussian
            prior being the weight decay).
        drop: `"lower"` or `"higher"` (the authors' code), which filter of a pair goes.
        gradient: False makes the regulariser a constant, as in the authors' code.
        weight: λ of the regulariser.
        distance: `"norm"`, or `"kl"` between the filters' posteriors (with `bayesian`).
        per_epoch: records of the history; the paper's has one for each of two hundred epochs.
        even: with a budget, the same share of every layer goes, as in a round of the paper; else the first
            history says how the budget is shared.
        name: of the result, for reports.
    """

    def callbacks(context: Context, state: State, number: int) -> list[Callback]:
        history = NormHistory(number, per_epoch=per_epoch, distance=distance)
        return [history, SimilarPairs(history, pair_fraction(context), weight=weight, drop=drop, gradient=gradient)]

    what = "expected L1 norms under mean-field Gaussian weights" if bayesian else "L1 norms"
    common = {"rounds": 8, "infer_share": 0.4, "kl_warmup": 0.5}
    if bayesian:
        found = recipes(
            **common,
            guide={"init_scale": 0.1},
            small={"infer.guide_lr": 1e-3, "kl_weight": 0.1, "estimator": "local"},
            deep={"infer.guide_lr": 2e-4, "kl_weight": 0.01, "guide.scale_lr": 25.0},
        )
    else:  # norms have to move for a history to say something: plain weights take the rate of their training
        found = recipes(
            **common,
            infer_distillation=0.5,
            small={"infer.guide_lr": 1e-3, "infer.weight_decay": 1e-4, "kl_weight": 0.1},
            deep={"infer.optimizer": "sgd", "infer.lr": 0.01, "infer.weight_decay": 5e-4, "kl_weight": 0.01},
        )
    return Method(
        name=name or ("hbfp-bayes" if bayesian else "hbfp"),
        title=f"history of {what}; one filter of each closest pair goes",
        source="Basha et al. 2024 (released code); gradient of the regulariser"
        + (" and posterior ours" if bayesian else " ours"),
        cut_where="closest pair of trajectories, widths planned once for a budget (20 % of each layer a round without a target)",
        prior=(lambda: Gaussian("fan_in")) if bayesian else (lambda: None),
        guide=MeanField if bayesian else (lambda model: NoLatents()),
        recipes=found,
        settings={
            "bayesian": bayesian,
            "drop": drop,
            "gradient": gradient,
            "weight": weight,
            "distance": distance,
            "per_epoch": per_epoch,
            "even": even,
        },
        rule="fraction",
        threshold=SHARE,
        callbacks=callbacks,
        score=_score,
        stops=True,
        pipeline=partial(by_history, even=even),
    )


HBFP = hbfp()
HBFP_BAYES = hbfp(bayesian=True)
