"""Guides (variational families): the package's own, and Pyro's AutoGuides started at the network (:func:`auto`).

Any Pyro guide works in their place.
"""

from pyrobnn.guides.auto import auto, initial_loc
from pyrobnn.guides.base import Guide, LikeTensor, PerChannel, PerKernel
from pyrobnn.guides.function import FunctionGuide, NoLatents
from pyrobnn.guides.kernel import KernelMeanField
from pyrobnn.guides.mean_field import MeanField
from pyrobnn.guides.noise import NormalNoise, TruncatedLogNormalNoise
from pyrobnn.guides.spike_slab import SpikeSlabGuide
from pyrobnn.guides.turbo import TurboGuide

__all__ = [
    "FunctionGuide",
    "Guide",
    "KernelMeanField",
    "LikeTensor",
    "MeanField",
    "NoLatents",
    "NormalNoise",
    "PerChannel",
    "PerKernel",
    "SpikeSlabGuide",
    "TruncatedLogNormalNoise",
    "TurboGuide",
    "auto",
    "initial_loc",
]
