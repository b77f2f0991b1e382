"""Initial widths of weight posteriors from the diagonal Fisher information."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from pyrobnn.distributions.base import base_distribution
from pyrobnn.errors import ConfigError
from pyrobnn.guides.mean_field import MeanField
from pyrobnn.inference.scores import random_target, score
from pyrobnn.likelihoods import Categorical, Likelihood
from pyrobnn.model import BayesianModel
from pyrobnn.nets.calling import eval_mode
from pyrobnn.nets.functional import call_with
from pyrobnn.summary.reading import deterministic_net

CHUNK = 16  # examples whose gradients are held at once


def weight_fisher(
    net: nn.Module,
    batches: Iterable[Any],
    *,
    data_size: int,
    likelihood: Likelihood | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Diagonal Fisher information of the parameters: N times the mean squared gradient of log p(y | x), example by example.

    With labels of the network's own predictive distribution (:mod:`~pyrobnn.inference.scores`), which makes it the Fisher
    information (and not the empirical one, which vanishes where the network fits its data).

    Args:
        net: a trained network, used in evaluation mode.
        batches: of images, or of images with targets (which are not looked at).
        data_size: N.
        likelihood: of the targets; classes by default.
        seed: of the scores; the global random state is kept.

    Returns:
        `{parameter name: like it}`, in nats per squared unit of the parameter.

    Raises:
        ConfigError: no images.
    """
    likelihood = Categorical() if likelihood is None else likelihood
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    buffers = dict(net.named_buffers())
    found = {name: torch.zeros_like(p) for name, p in parameters.items()}
    seen = 0

    def log_density(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        output = call_with(net, {**values, **buffers}, (x[None],))
        return score(likelihood(output), y[None]).sum()

    with eval_mode(net), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for batch in batches:
            x = batch[0] if isinstance(batch, tuple | list) else batch
            with torch.no_grad():
                y = random_target(likelihood(net(x)))
            for part, labels in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
                # The checks of arguments, done with the labels already, ask for values, which vmap of torch 2.6 has not.
                with pyro.validation_enabled(False):
                    gradients = vmap(grad(log_density), in_dims=(None, 0, 0))(parameters, part, labels)
                for name, g in gradients.items():
                    found[name] += g.square().sum(0)
            seen += len(x)
    if not seen:
        raise ConfigError("a Fisher information needs at least one image")
    return {name: value * (data_size / seen) for name, value in found.items()}


def start_widths(
    model: BayesianModel, guide: MeanField, batches: Iterable[Any], *, kl_weight: float = 1.0, seed: int = 0
) -> None:
    """Move the widths of random weights to where the data and the prior would leave them: σ² = w / (F + w/s²).

    That is the optimum of NLL + w KL where the likelihood is quadratic with the curvature F of a weight
    (:func:`weight_fisher` at the posterior means) and the prior is N(·, s²); for other priors s² is their variance. From one
    constant per tensor an epoch of inference moves widths by little; from here it is a correction.

    Args:
        model, guide: the pair; the guide's means stay.
        batches: images, or images with targets; some hundred are enough.
        kl_weight: w, the temperature that the fit will have.
        seed: of the random scores.

    Raises:
        ConfigError: a weight that is not positive, no images, or a guide of another kind.
    """
    if not kl_weight > 0:
        raise ConfigError(f"kl_weight must be positive, got {kl_weight}; 1 is the posterior itself")
    if not isinstance(guide, MeanField):
        raise ConfigError(f"start_widths sets the widths of a MeanField guide, got {type(guide).__name__}")
    net = deterministic_net(model, guide)
    information = weight_fisher(net, batches, data_size=model.data_size, likelihood=model.likelihood, seed=seed)
    guide.note_start()  # what moves here has moved
    means = guide.moments()
    for name, site in model.sites().items():
        if name in information:
            prior = base_distribution(site["fn"]).variance.to(information[name])
            variance = kl_weight / (information[name] + kl_weight / prior)
            guide.set_scale(name, means[name][0], variance.sqrt())
