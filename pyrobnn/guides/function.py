"""A guide written as a plain function, as an `nn.Module` with its own parameter store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyrobnn.guides.base import site_key


class FunctionGuide(PyroModule):
    """Runs `function` with a parameter store of its own, so that nothing is left in the global one.

    The `pyro.param`s that the function makes become `nn.Parameter`s of this module (in their
    unconstrained form) at the first call.

    Args:
        function: a Pyro guide, called with the model's arguments.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.unconstrained = nn.ParameterDict()
        self._function = (function,)
        self._constraints: dict[str, Any] = {}
        self._names: dict[str, str] = {}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        store = pyro.get_param_store()
        own: Any = self._modules["unconstrained"]  # past __getattr__, which would announce every parameter
        parameters = {name: own[key] for name, key in self._names.items()}
        with store.scope({"params": parameters, "constraints": dict(self._constraints)}):
            result = self._function[0](*args, **kwargs)
            state = store.get_state()
        for name, value in state["params"].items():
            if name not in self._names:
                self._names[name] = site_key(name)
                self._constraints[name] = state["constraints"][name]
                # The store's leaf is the tensor of this first call's graph; as a Parameter it shares
                # its storage, so the optimiser moves what the next call reads.
                own[site_key(name)] = nn.Parameter(value.detach())
        return result

    def param(self, name: str) -> Tensor:
        """The constrained value of one `pyro.param`."""
        transform = torch.distributions.transform_to(self._constraints[name])
        return transform(self.unconstrained[self._names[name]])


def as_guide_module(guide: Any) -> nn.Module:
    """The guide itself if it is a module, else a :class:`FunctionGuide` around it."""
    return guide if isinstance(guide, nn.Module) else FunctionGuide(guide)


class NoLatents(PyroModule):
    """The guide of a model without latent sites: MAP training of a plain network."""

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        return {}

    def moments(self) -> dict[str, tuple[Tensor, Tensor]]:
        """No sites."""
        return {}
