"""The channel table: which channels go together, read from the network and tried."""

from pyrobnn.groups.gates import GateMap
from pyrobnn.groups.parts import ChannelGroup, Cost, Member
from pyrobnn.groups.read import channel_groups
from pyrobnn.groups.surgery import refresh_attributes
from pyrobnn.groups.table import ChannelTable

__all__ = [
    "ChannelGroup",
    "ChannelTable",
    "Cost",
    "GateMap",
    "Member",
    "channel_groups",
    "refresh_attributes",
]
