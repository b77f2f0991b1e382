"""The generative side: priors over weights, channel noise and gates."""

from pyrobnn.priors.base import NetView, Prior, WeightPrior, selected
from pyrobnn.priors.capped import CappedL1
from pyrobnn.priors.gaussian import Gaussian, Laplace, ScaleMixture

__all__ = ["CappedL1", "Gaussian", "Laplace", "NetView", "Prior", "ScaleMixture", "WeightPrior", "selected"]
