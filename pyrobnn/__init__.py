"""Bayesian compression of convolutional networks on Pyro: posterior in, smaller network out."""

from pyrobnn import _moved, guides, likelihoods, nets, priors
from pyrobnn.channels import ChannelGroup, ChannelTable, PruningPlan, channel_groups, compact, mask
from pyrobnn.channels.planner import plan_for_budget
from pyrobnn.channels.search import largest_cut
from pyrobnn.compression.compress import Result, compress
from pyrobnn.compression.store import load_bayesian, load_compact
from pyrobnn.criteria.rules import plan
from pyrobnn.data import Data, load_data
from pyrobnn.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    NetError,
    NumericalError,
    PlanError,
    PyrobnnError,
)
from pyrobnn.inference.batchnorm import reestimate_batchnorm
from pyrobnn.inference.config import FitConfig
from pyrobnn.inference.elbo import ELBO
from pyrobnn.inference.fit import FitResult, fit
from pyrobnn.inference.predict import predict
from pyrobnn.inference.shrink import shrink
from pyrobnn.model import BayesianModel
from pyrobnn.posterior.bayesian_net import BayesianNet
from pyrobnn.posterior.khat import guide_khat
from pyrobnn.summary.summarize import deterministic_net, summarize
from pyrobnn.summary.types import Posterior

__version__ = "0.1.0"

_moved.install()

__all__ = [
    "ELBO",
    "BayesianModel",
    "BayesianNet",
    "ChannelGroup",
    "ChannelTable",
    "CheckpointError",
    "ConfigError",
    "Data",
    "DataError",
    "FitConfig",
    "FitResult",
    "NetError",
    "NumericalError",
    "PlanError",
    "Posterior",
    "PruningPlan",
    "PyrobnnError",
    "Result",
    "channel_groups",
    "compact",
    "compress",
    "deterministic_net",
    "fit",
    "guide_khat",
    "guides",
    "largest_cut",
    "likelihoods",
    "load_bayesian",
    "load_compact",
    "load_data",
    "mask",
    "nets",
    "plan",
    "plan_for_budget",
    "predict",
    "priors",
    "reestimate_batchnorm",
    "shrink",
    "summarize",
]
