"""`Method`: prior, guide, criterion, recipe and callbacks of one system, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from pyrobnn.inference.callbacks import Callback
from pyrobnn.pipeline.recipe import Recipes, recipes
from pyrobnn.priors.base import Prior, PriorFunction
from pyrobnn.summary.types import Posterior

if TYPE_CHECKING:
    from pyrobnn.channels import ChannelTable
    from pyrobnn.criteria.context import ScoringContext
    from pyrobnn.model import BayesianModel
    from pyrobnn.pipeline.context import Context
    from pyrobnn.pipeline.sparsity import Zeros
    from pyrobnn.pipeline.stages import Stage
    from pyrobnn.pipeline.state import State


def _no_callbacks(context: Context, state: State, number: int) -> list[Callback]:
    return []


@dataclass(frozen=True)
class Method:
    """One published system (or our own) as data.

    Attributes:
        name: what `--method` takes.
        title: one line for `pyrobnn methods`.
        source: the paper, and how much of it could be read.
        cut_where: the rule in words.
        prior: makes the prior; None for point weights (a control, or MAP by weight decay).
        guide: makes the guide, given the model and the recipe's settings of the guide as keywords.
        recipes: how a network of each kind is trained, see :func:`~pyrobnn.pipeline.recipe.recipes`.
        rule, threshold: the cut rule of :func:`~pyrobnn.plan` where no target is given.
        settings: what the method itself was told, as plain data; two methods of one name that differ here are two.
        callbacks: makes the callbacks of one round's fit, given the round's number (from 0); what they remember goes on
            from round to round.
        start: puts a new model, guide and callbacks, in place, where a fit is to start from that does not go on with an
            earlier guide; None leaves them.
        score: scores the channels where the posterior's own statistic is not what the method reads;
            returns the posterior with its scores. None: what `summarize` found.
        usable: the groups that the method can judge, of a network and its table; the others are refused
            with their reason, before anything is trained. None: all.
        stops: without a target, stops by itself when validation accuracy would be lost.
        zeros: for methods that decide weight by weight: which single weights of the cut network stay
            (see :mod:`pyrobnn.pipeline.sparsity`); the others are zero from then on.
        pipeline: the stages from a dense to a compact network; None is
            :func:`~pyrobnn.pipeline.pipelines.common`.
    """

    name: str
    title: str
    source: str
    cut_where: str
    prior: Callable[[], Prior | PriorFunction | None]
    guide: Callable[..., Any]
    recipes: Recipes = field(default_factory=recipes)
    rule: str = "snr"
    threshold: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    callbacks: Callable[[Context, State, int], list[Callback]] = _no_callbacks
    start: Callable[[Context, State, BayesianModel, Any, list[Callback]], None] | None = None
    score: Callable[[ScoringContext], Posterior] | None = None
    usable: Callable[[nn.Module, ChannelTable], ChannelTable] | None = None
    stops: bool = False
    zeros: Callable[[Context, State], Zeros] | None = None
    pipeline: Callable[[Context], list[Stage]] | None = None
