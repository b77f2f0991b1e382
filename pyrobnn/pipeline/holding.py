"""Under `--max-drop`, tuning returns the last epoch that steadily held the drop if the final one did not hold it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.inference.callbacks import Callback, FitState, FitUpdate

STEADY = 3  # epochs whose mean has to hold: of thirty that come near, one is above the line by chance


class LastHeld(Callback):
    """Takes a fit that ends below a line back to its last epoch that was steadily above it.

    Under `--max-drop` everything is chosen on validation images, the end of tuning too: on few training images a network
    goes on learning them by heart when it has nothing more to learn from them. The best of many epochs is no better on
    other images, so that an earlier epoch counts only if the mean of it and the two before it holds too.

    Args:
        score: of an epoch, from its row of the history.
        least: that is asked for.
    """

    def __init__(self, score: Callable[[Mapping[str, Any]], float], least: float) -> None:
        self.score, self.least = score, least
        self._tensors: dict[str, Tensor] = {}

    @torch.no_grad()
    def on_epoch_end(self, state: FitState) -> FitUpdate | None:
        scores = [self.score(row) for row in state.history[-STEADY:]]
        if scores[-1] >= self.least:
            if sum(scores) / len(scores) >= self.least:
                self._tensors = {name: value.detach().clone() for name, value in _tensors(state.model.net).items()}
            return None
        if state.progress < 1 or not self._tensors:
            return None
        return FitUpdate(tensors={f"net.{name}": value for name, value in self._tensors.items()})

    def state_dict(self) -> dict[str, Any]:
        return {"tensors": dict(self._tensors)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._tensors = dict(state["tensors"])


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    return {**dict(net.named_parameters()), **dict(net.named_buffers())}
