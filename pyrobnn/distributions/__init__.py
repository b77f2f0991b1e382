"""Distributions that torch and Pyro lack, each with its KL where one is known."""

from pyrobnn.distributions import kl as _kl  # noqa: F401  (registers the divergences)
from pyrobnn.distributions.ard import ARD
from pyrobnn.distributions.binary import StraightThroughBernoulli, SwitchedNormal
from pyrobnn.distributions.hard_concrete import GateLogit, hard_concrete
from pyrobnn.distributions.log_uniform import LogUniform
from pyrobnn.distributions.truncated_log_normal import TruncatedLogNormal
from pyrobnn.distributions.two_spike import NormalPair, TwoSpike, responsibility

__all__ = [
    "ARD",
    "GateLogit",
    "LogUniform",
    "NormalPair",
    "StraightThroughBernoulli",
    "SwitchedNormal",
    "TruncatedLogNormal",
    "TwoSpike",
    "hard_concrete",
    "responsibility",
]
