"""The whole pipeline in one call (`compress`), and the run directory that it writes (`store`)."""

from pyrobnn.compression.compress import Result, compress
from pyrobnn.compression.store import load_bayesian, load_compact

__all__ = ["Result", "compress", "load_bayesian", "load_compact"]
