"""Channel noise drawn for every example of a batch, instead of once for all of them.

One draw for the batch makes the likelihood's gradient in a channel's width as noisy as that draw: B examples share it. With a
draw for each example the estimate has the variance of B draws, at the price of a multiplication per reader of a channel (the
batch's draw is folded into the readers' weights). KL divergences are those of the guide, as before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyrobnn.errors import ConfigError
from pyrobnn.model import BayesianModel


class _WithoutDraw(Messenger):
    """Shows the network ones in place of the batch's draw of some sites; the trace keeps the draw."""

    def __init__(self, sites: set[str]) -> None:
        super().__init__()
        self.sites = sites

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self.sites and not msg["is_observed"]:
            msg["value"] = torch.ones_like(msg["value"])


@contextmanager
def by_example(model: Any, guide_trace: Trace, examples: int) -> Iterator[Any]:
    """The model with its channel noise drawn for each of so many examples, from the guide's distributions.

    Args:
        model: a :class:`~pyrobnn.BayesianModel` with noise sites.
        guide_trace: of this step.
        examples: of the batch.

    Raises:
        ConfigError: a model of another kind, or one without channel noise.
    """
    if not isinstance(model, BayesianModel):
        raise ConfigError("estimator='example' draws noise inside the network: give it the BayesianModel itself")
    drawn: dict[str, Tensor] = {}
    sites = set()
    for name, node in guide_trace.nodes.items():
        group = model.group_of_site(name) if node["type"] == "sample" and name.endswith(".noise") else None
        if group is not None:
            fn: Any = node["fn"]
            drawn[group] = fn.rsample(torch.Size([examples]))
            sites.add(name)
    if not drawn:
        raise ConfigError(
            "estimator='example' draws channel noise for every example, and this model has none: use 'weight'"
        )
    model.example_factors = drawn
    try:
        yield _WithoutDraw(sites)(model)
    finally:
        model.example_factors = None
