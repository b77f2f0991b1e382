"""Variational families: the package's guides. Any Pyro guide works in their place."""

from pyrobnn.guides.base import Guide, LikeTensor, PerChannel, PerKernel
from pyrobnn.guides.function import FunctionGuide, NoLatents
from pyrobnn.guides.kernel import KernelMeanField
from pyrobnn.guides.mean_field import MeanField

__all__ = ["FunctionGuide", "Guide", "KernelMeanField", "LikeTensor", "MeanField", "NoLatents", "PerChannel", "PerKernel"]
