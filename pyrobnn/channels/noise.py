"""Makes networks that are random in eval mode deterministic while groups are tried."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyrobnn.channels.calls import operation_name

_DROPOUT = {
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout"),
    *("alpha_dropout", "feature_alpha_dropout"),
}
_DRAWS = {
    "rand",
    "rand_like",
    "randn",
    "randn_like",
    "uniform",
    "normal",
    "exponential",
    "log_normal",
    "cauchy",
    "geometric",
}
_NUMBERS = {"randint", "randint_like", "random", "multinomial"}


class FrozenNoise(TorchFunctionMode):
    """Every draw is a constant that does not depend on the number of channels.

    Dropout passes its input on, uniform and normal draws are 1/2, Bernoulli draws their probability, whole numbers 0
    and permutations the identity.

    Attributes:
        drew: whether anything was drawn since this was made.
    """

    drew = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = operation_name(func)
        if name in _DROPOUT:
            self.drew |= bool(kwargs.get("training", args[2] if len(args) > 2 else True))
            return args[0] if args else kwargs["input"]
        if name == "gumbel_softmax":
            self.drew = True
            return torch.softmax(args[0] if args else kwargs["logits"], kwargs.get("dim", -1))
        if name == "rrelu":
            self.drew |= bool(kwargs.get("training", args[3] if len(args) > 3 else False))
            kwargs = {**kwargs, "training": False}
            args = args[:3]
        out = func(*args, **kwargs)
        if not isinstance(out, Tensor):
            return out
        self.drew |= name in _DRAWS or name in _NUMBERS or name in ("randperm", "bernoulli", "poisson")
        if name in _DRAWS:
            return out.fill_(0.5) if out.is_floating_point() else out.fill_(0)
        if name in _NUMBERS:
            return out.fill_(0)
        if name == "randperm":
            return out.copy_(torch.arange(out.numel()))
        if name == "bernoulli":
            inplace = args and out is args[0]
            chance = kwargs.get("p", args[1] if len(args) > 1 else 0.5 if inplace else args[0])
            return out.copy_(chance) if isinstance(chance, Tensor) else out.fill_(chance)
        if name == "poisson":
            return out.copy_(args[0])
        return out
