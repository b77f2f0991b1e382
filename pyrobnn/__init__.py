"""Bayesian compression of convolutional networks on Pyro: posterior in, smaller network out."""

from pyrobnn import guides, likelihoods, nets, priors
from pyrobnn.compression import Result, compress
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
from pyrobnn.groups import ChannelGroup, ChannelTable, channel_groups
from pyrobnn.inference.config import FitConfig
from pyrobnn.inference.elbo import ELBO
from pyrobnn.inference.fit import FitResult, fit
from pyrobnn.inference.predict import predict
from pyrobnn.inference.shrink import shrink
from pyrobnn.model import BayesianModel
from pyrobnn.posterior.bayesian_net import BayesianNet
from pyrobnn.posterior.khat import guide_khat
from pyrobnn.posterior.summary import Posterior, deterministic_net, summarize
from pyrobnn.pruning import PruningPlan, compact, mask
from pyrobnn.pruning.batchnorm import reestimate_batchnorm
from pyrobnn.pruning.criteria import plan, plan_for_budget
from pyrobnn.pruning.search import largest_cut
from pyrobnn.rundir import load_bayesian, load_compact

__version__ = "0.1.0"

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
