"""Channel groups of a network, what they cost, and how to cut them; nothing here depends on Pyro.

:class:`ChannelTable` lists the :class:`ChannelGroup` of a network, read from its own operations and tried. A
:class:`PruningPlan` says which units of each group stay; `mask` zeroes the others, `compact` removes them.
"""

from pyrobnn.channels.check import check_cut
from pyrobnn.channels.compact import compact, resize_to
from pyrobnn.channels.gates import GateMap
from pyrobnn.channels.mask import mask
from pyrobnn.channels.parts import ChannelGroup, Cost, Member
from pyrobnn.channels.plan import PruningPlan
from pyrobnn.channels.read import channel_groups
from pyrobnn.channels.surgery import refresh_attributes
from pyrobnn.channels.table import ChannelTable

__all__ = [
    "ChannelGroup",
    "ChannelTable",
    "Cost",
    "GateMap",
    "Member",
    "PruningPlan",
    "channel_groups",
    "check_cut",
    "compact",
    "mask",
    "refresh_attributes",
    "resize_to",
]
