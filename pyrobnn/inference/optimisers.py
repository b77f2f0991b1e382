"""From settings to a torch optimiser: which parameters step at which rate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.errors import ConfigError
from pyrobnn.inference.config import FitConfig
from pyrobnn.inference.muon import Muon, muon_groups


def new_optimiser(config: FitConfig, net: nn.Module, guide: Any) -> torch.optim.Optimizer:
    """An optimiser for the deterministic parameters of a network and for a guide.

    Widths that step by themselves (`scale_rate`) are left out. Every group holds its peak rate as `peak`, for the schedule to scale. A guide may have a method
    `lr_factor(name)`, a factor on `guide_lr` for one of its parameters.

    Raises:
        ConfigError: there is nothing to train.
    """
    weights = [p for p in net.parameters() if p.requires_grad]
    guide_lr = config.lr if config.guide_lr is None else config.guide_lr
    factor = getattr(guide, "lr_factor", lambda name: 1.0)
    rates: dict[float, list[Tensor]] = {}
    apart = guide.scale_parameters() if config.scale_rate is not None and hasattr(guide, "scale_parameters") else {}
    for name, parameter in guide.named_parameters():
        if parameter.requires_grad and name not in apart:
            rates.setdefault(guide_lr * factor(name), []).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in weights if p.dim() > 1], "peak": config.lr, "weight_decay": config.weight_decay},
        {"params": [p for p in weights if p.dim() <= 1], "peak": config.lr, "weight_decay": 0.0},
    ]
    if config.optimizer == "muon":
        groups = muon_groups(weights, config.lr, config.weight_decay)
    for rate, params in rates.items():
        groups.append({"params": params, "peak": rate, "weight_decay": 0.0})
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ConfigError("nothing to train: model and guide have no parameters that require gradients")
    if config.optimizer == "muon":
        return Muon(groups, lr=config.lr, momentum=config.momentum, orthogonal=False)
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, lr=config.lr, betas=(config.momentum, 0.999), fused=True)
    sgd = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=True)
    if config.momentum:  # the fused one cannot start a parameter later than others of its group
        for parameter in (p for group in groups for p in group["params"]):
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd


def load_optimiser(optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take up moments and peaks; how a step is computed stays as this device wants it.

    Raises:
        ValueError: a state of other parameters.
    """
    own = ("lr", "fused", "foreach", "capturable")
    kept = [{name: group[name] for name in own if name in group} for group in optimiser.param_groups]
    optimiser.load_state_dict(state)
    for group, settings in zip(optimiser.param_groups, kept, strict=True):
        group.update(settings)
    for parameter, moments in optimiser.state.items():
        for name, value in moments.items():
            moments[name] = laid_out_like(parameter, value)


def laid_out_like(parameter: Tensor, value: Any) -> Any:
    """Moments in the memory layout of their parameter: fused optimisers walk through both as they lie."""
    if not isinstance(value, Tensor) or value.shape != parameter.shape or value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
