"""Priors over weights, channel noise and gates."""

from pyrobnn.priors.base import NetView, Prior, WeightPrior, selected
from pyrobnn.priors.capped import CappedL1
from pyrobnn.priors.gaussian import Gaussian, Laplace, ScaleMixture
from pyrobnn.priors.noise import ARDNoise, LogUniformNoise, SpikeNoise, TwoSpikeNoise
from pyrobnn.priors.spike_slab import EdgeSpikeSlab, SpikeSlab
from pyrobnn.priors.tensor_normal import TensorNormal
from pyrobnn.priors.turbo import PrecisionPrior, Transitions, Turbo

__all__ = [
    "ARDNoise",
    "CappedL1",
    "EdgeSpikeSlab",
    "Gaussian",
    "Laplace",
    "LogUniformNoise",
    "NetView",
    "PrecisionPrior",
    "Prior",
    "ScaleMixture",
    "SpikeNoise",
    "SpikeSlab",
    "TensorNormal",
    "Transitions",
    "Turbo",
    "TwoSpikeNoise",
    "WeightPrior",
    "selected",
]
