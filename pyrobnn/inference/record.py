"""Records the statistic of every channel after each epoch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyrobnn.inference.callbacks import Callback, FitState
from pyrobnn.summary.summarize import summarize


class ChannelHistory(Callback):
    """Reads every channel's SNR (or inclusion probability) at the end of each epoch.

    Attributes:
        records: one `{group: statistic [channels]}` per epoch, in the coordinates of that epoch's network.
        kinds: `{group: statistic}`, what the numbers are; see :class:`~pyrobnn.summary.types.ChannelSummary`.
    """

    def __init__(self) -> None:
        self.records: list[dict[str, Tensor]] = []
        self.kinds: dict[str, str] = {}

    def on_epoch_end(self, state: FitState) -> None:
        channels = summarize(state.model, state.guide, draws=0).channels
        self.records.append({name: channel.snr for name, channel in channels.items()})
        self.kinds = {name: channel.statistic for name, channel in channels.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"records": list(self.records), "kinds": dict(self.kinds)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.records, self.kinds = list(state["records"]), dict(state["kinds"])
