"""The equilibrium width of channel noise: where a likelihood of known curvature and a weighted KL balance.

Starts go from the curvature to the width, read-offs from a fitted width to the curvature, and so to what the likelihood
loses without the channel.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyrobnn.distributions import TruncatedLogNormal


def spike_loss(loc: Tensor, scale: Tensor, tau: float, kl_weight: float = 1.0) -> Tensor:
    """Nats of log-likelihood between θ = loc and θ = 0, read off a posterior N(loc, scale²) under a spike of width tau.

    Likelihood and w-weighted KL balance in the width where h = w (1/scale² − 1/tau²), so a likelihood of curvature h
    with its peak at `loc` loses ½ h loc² (a quadratic one exactly). A width is fitted to a few per cent at best, less
    while its spike still narrows: below 1 % of the spike's curvature h is not told from 0, and counts as so much.

    Args:
        loc, scale: of the noise, `[channels]`.
        tau: width of the spike.
        kl_weight: w, of the KL that the noise was fitted with.
    """
    return 0.5 * kl_weight * loc.square() * (scale.pow(-2) - tau**-2).clamp_min(0.01 * tau**-2)


def ard_loss(snr: Tensor, weight: float) -> Tensor:
    """Nats of log-likelihood lost without a channel, read off its fitted noise under a weighted ARD KL.

    Where w * 1/2 log(1 + mu^2 / sigma^2) balances a likelihood of curvature h in the noise, the
    stationary sigma gives 1/2 h mu^2 = 1/2 w SNR^4 / (1 + SNR^2). So the price in w does not count
    twice when the loss is divided by the cost saved.
    """
    square = snr.square()
    return 0.5 * weight * square * (square / (1 + square))  # the fourth power overflows long before its root does


WIDEST = 10.0  # noise that a start gives a channel at the most: as good as none is left of it


def ard_variance(information: Tensor, weight: float) -> Tensor:
    """σ² of N(1, σ²) noise where w ½ log(1 + 1/σ²) balances a likelihood of curvature F: F σ² (1 + σ²) = w."""
    ratio = weight / information.double().clamp_min(1e-30)
    # 2 w/F / (1 + √(1 + 4 w/F)): the difference of the textbook's root loses all digits where F is large.
    return (2 * ratio / (1 + (1 + 4 * ratio).sqrt())).clamp_max(WIDEST**2)


def spike_variance(information: Tensor, weight: float, tau: float) -> Tensor:
    """σ² where a spike of width τ, at weight w, and a likelihood of curvature F balance: w = (F + w/τ²) σ²."""
    return weight / (information.double() + weight / tau**2)


def stationary_loss(posterior: TruncatedLogNormal) -> Tensor:
    """½ h of the likelihood −½ h (θ − 1)² under which this σ is stationary, per unit of a log-uniform KL's weight.

    Where ½ h E(θ − 1)² balances w KL, ½ h / w = −(∂KL/∂σ) / (∂E(θ − 1)²/∂σ), near θ = 1 that is 1 / 2σ². 0 where the
    spread does not grow with σ: no likelihood holds such a channel.
    """
    with torch.enable_grad():
        scale = posterior.scale.detach().double().requires_grad_()
        q = TruncatedLogNormal(posterior.loc.detach().double(), scale, posterior.a, posterior.b, validate_args=False)
        risk = q.variance + (q.mean - 1).square()
        (spread,) = torch.autograd.grad(risk.sum(), scale, retain_graph=True)
        (entropy,) = torch.autograd.grad(q.entropy_log().sum(), scale)
    return torch.where(spread > 1e-9, entropy / spread.clamp_min(1e-9), 0.0).clamp_min(0.0)


TOLD = 0.01  # nats per unit of the KL weight below which a loss is not told from 0, as for spikes


def log_uniform_loss(posterior: TruncatedLogNormal, weight: float) -> Tensor:
    """Nats of log-likelihood lost without a channel under a weighted log-uniform KL: ½ h, h from :func:`stationary_loss`.

    A channel that the data do not hold goes back to its prior, and no scale of it is stationary: the part 1 − e^(−KL²)
    takes its loss to 0 with the KL, and leaves others as they are. All that is known of it is that the data hold it by
    less than the weight asks for, so it counts as `TOLD` of the weight: under a high price such a channel may have a use.
    """
    q = TruncatedLogNormal(
        posterior.loc.detach().double(),
        posterior.scale.detach().double(),
        posterior.a,
        posterior.b,
        validate_args=False,
    )
    kl = math.log(posterior.b - posterior.a) - q.entropy_log()
    return (weight * (stationary_loss(q) * -torch.expm1(-kl.square())).clamp_min(TOLD)).float()


def stationary_log_scale(lost: Tensor, a: float, b: float) -> Tensor:
    """log σ at μ = 0 where :func:`stationary_loss` is `lost`; infinite where it is less than at any narrow σ."""
    grid = torch.linspace(math.log(1e-4), 0.0, 200, dtype=torch.float64)
    q = TruncatedLogNormal(torch.zeros_like(grid), grid.exp(), a, b, validate_args=False)
    losses = stationary_loss(q).log()  # falls with σ
    wanted = lost.cpu().clamp_min(1e-30).log()
    right = torch.searchsorted(-losses, -wanted).clamp(1, len(grid) - 1)
    part = (wanted - losses[right - 1]) / (losses[right] - losses[right - 1])
    found = grid[right - 1] + part.clamp(0, 1) * (grid[right] - grid[right - 1])
    return torch.where(wanted < losses[-1], torch.inf, found).to(lost.device)
