"""From a plan to a smaller network."""

from pyrobnn.pruning.compact import compact, resize_to
from pyrobnn.pruning.mask import mask
from pyrobnn.pruning.plan import PruningPlan

__all__ = ["PruningPlan", "compact", "mask", "resize_to"]
