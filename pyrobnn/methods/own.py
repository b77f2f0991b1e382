"""A method with a prior or a guide of the user's own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from pyrobnn.errors import ConfigError
from pyrobnn.guides.mean_field import MeanField
from pyrobnn.model import BayesianModel
from pyrobnn.pipeline.method import Method
from pyrobnn.priors.base import Prior, PriorFunction

OWN = "own"  # its name in reports


def with_own(
    method: Method, prior: Prior | PriorFunction | None, guide: Callable[[BayesianModel], Any] | None
) -> Method:
    """A prior, a guide or both in place of a method's; the recipe (optimisers, rates, rounds, KL weight) is what stays.

    What a method computes from the state of its own guide (prices, events, scores, starts, stages) goes with it:
    channels are judged by what `summarize` reads, and cut in the common rounds.

    Args:
        method: whose recipe is used, and whose prior or guide where none is given.
        prior: as :class:`~pyrobnn.BayesianModel` takes it; every round starts from a copy.
        guide: makes a guide of a model, such as `pb.guides.MeanField` (the default where a prior is given) or
            `lambda model: pb.guides.auto(model, AutoNormal)`.

    Raises:
        ConfigError: a prior or a guide that is none, or a guide without a prior where the method has none.
    """
    if prior is not None and not callable(prior):
        raise ConfigError(f"prior= takes a prior (pb.priors.…, or a function of a view), got {type(prior).__name__}")
    if isinstance(prior, type):
        raise ConfigError(f"prior= takes a prior, got the class {prior.__name__}: call it, prior={prior.__name__}()")
    if guide is not None and (isinstance(guide, nn.Module) or not callable(guide)):
        raise ConfigError(
            f"guide= takes what makes a guide, such as pb.guides.MeanField or lambda model: …, got {type(guide).__name__}: "
            "a new one is made of the network that each round leaves"
        )
    if prior is None and method.prior() is None:
        raise ConfigError(f"{method.name} has no prior, so a guide has no sites: give prior= too")
    names = {"prior": prior or method.prior(), "guide": guide or MeanField}
    return Method(
        name=OWN,
        title=f"a prior or guide of your own, with the recipe of {method.name}",
        source="yours",
        cut_where="what the posterior says of each channel",
        prior=method.prior if prior is None else partial(copy.deepcopy, prior),
        guide=_checked(guide or MeanField),
        recipes=method.recipes.with_values({"guide": {}}),
        settings={"recipe": method.name, **{name: _named(value) for name, value in names.items()}},
    )


def _checked(make: Callable[[BayesianModel], Any]) -> Callable[[BayesianModel], Any]:
    def made(model: BayesianModel) -> Any:
        guide = make(model)
        if not isinstance(guide, nn.Module):
            raise ConfigError(
                f"the guide of a run is stored with it, so it must be a module (pb.guides.Guide, an AutoGuide), got "
                f"{type(guide).__name__}: a guide that is a function works with pb.fit"
            )
        return guide

    return made


def _named(value: Any) -> str:
    return str(getattr(value, "__qualname__", type(value).__qualname__))
