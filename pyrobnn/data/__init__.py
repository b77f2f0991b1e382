"""Data sets: images in memory or streamed, and how they are read from each kind of source."""

from pyrobnn.data.arrays import Data
from pyrobnn.data.augment import Augment
from pyrobnn.data.named import NAMES, cache_dir
from pyrobnn.data.sources import load_data
from pyrobnn.data.split import Split

__all__ = ["NAMES", "Augment", "Data", "Split", "cache_dir", "load_data"]
