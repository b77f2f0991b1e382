"""Variational families: the package's guides. Any Pyro guide works in their place."""

from pyrobnn.guides.base import Guide, LikeTensor, PerChannel
from pyrobnn.guides.function import FunctionGuide, NoLatents
from pyrobnn.guides.mean_field import MeanField

__all__ = ["FunctionGuide", "Guide", "LikeTensor", "MeanField", "NoLatents", "PerChannel"]
