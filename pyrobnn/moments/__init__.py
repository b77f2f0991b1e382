"""Random tensors as (mean, variance): local reparameterisation and moment propagation."""

from pyrobnn.moments import (
    full_layers,
    full_rules,
    rules_activation,
    rules_affine,
    rules_arithmetic,
    rules_norm,
    rules_pool,
    rules_shape,
)
from pyrobnn.moments.full import FullMoments
from pyrobnn.moments.handler import MomentMessenger
from pyrobnn.moments.likelihood import (
    MomentCategorical,
    gaussian_log_likelihood,
    sampled_log_likelihood,
    second_order_log_likelihood,
)
from pyrobnn.moments.options import MomentOptions, moment_options
from pyrobnn.moments.propagate import propagate, shared_weights
from pyrobnn.moments.registry import rule
from pyrobnn.moments.tensor import Moments

__all__ = [
    "FullMoments",
    "MomentCategorical",
    "MomentMessenger",
    "MomentOptions",
    "Moments",
    "gaussian_log_likelihood",
    "moment_options",
    "propagate",
    "rule",
    "sampled_log_likelihood",
    "second_order_log_likelihood",
    "shared_weights",
]

_RULES = (
    full_layers,
    full_rules,
    rules_activation,
    rules_affine,
    rules_arithmetic,
    rules_norm,
    rules_pool,
    rules_shape,
)  # entered on import
