"""Factors on channels that differ from example to example: on what the readers of a channel get, not on their weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pyrobnn.channels.table import ChannelTable
from pyrobnn.errors import ConfigError
from pyrobnn.nets.channel_map import ChannelMap

_CONVOLUTIONS = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
_TRANSPOSED = {torch.conv_transpose1d: 1, torch.conv_transpose2d: 2, torch.conv_transpose3d: 3}


class NotPerExample(ConfigError):
    """A reader whose factor cannot be written as one per example on its input."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name!r} reads its channels in a way that takes no factors example by example (convolutions, linear layers and "
            "channel maps do): use one draw for the batch, estimator='weight'"
        )


class ExampleFactors(TorchFunctionMode):
    """Multiplies every example's channels by its own factors where they are read.

    Convolutions, linear layers and channel maps are covered, the readers of nearly every network.

    Args:
        net: the network that will run.
        table: its channel table.
        examples: of the batch.
        tensors: what takes the place of the network's own tensors in the run (as for `functional_call`).

    Attributes:
        seen: the readers that were met.
    """

    def __init__(
        self, net: nn.Module, table: ChannelTable, examples: int, tensors: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__()
        self.examples = examples
        self.axes = {name: axes for name, axes in table.read_axes.items() if any(bool(u.any()) for u in axes.values())}
        own = dict(net.named_parameters(remove_duplicate=False)) | dict(net.named_buffers(remove_duplicate=False))
        self._names = {id(tensor): name for name, tensor in {**own, **(tensors or {})}.items() if name in self.axes}
        self._maps = {
            f"{path}.weight": module for path, module in net.named_modules() if isinstance(module, ChannelMap)
        }
        self.seen: set[str] = set()

    def factors(self, name: str, units: Tensor, like: Tensor) -> Tensor:
        """`[examples, positions]` on the read axis of a tensor whose positions have these flat units (0: no channel)."""
        raise NotImplementedError

    def _factor(self, name: str, axis: int, like: Tensor) -> Tensor:
        units = self.axes[name].get(axis)
        if units is None or len(self.axes[name]) > 1 or like.shape[0] != self.examples:
            raise NotPerExample(name)
        self.seen.add(name)
        return self.factors(name, units, like)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.nn.functional.linear or func in _CONVOLUTIONS or func in _TRANSPOSED:
            x, weight = _argument(args, kwargs, 0, "input"), _argument(args, kwargs, 1, "weight")
            name = self._names.get(id(weight))
            if name is not None:
                x = self._read(func, name, x)
                args, kwargs = ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "input": x})
        return func(*args, **kwargs)

    def _read(self, func: Any, name: str, x: Tensor) -> Tensor:
        if func is torch.nn.functional.linear:
            factor = self._factor(name, 1, x)
            return x * factor.view(self.examples, *[1] * (x.dim() - 2), -1)
        transposed = func in _TRANSPOSED
        spatial = _TRANSPOSED[func] if transposed else _CONVOLUTIONS[func]
        if x.dim() != spatial + 2:
            raise NotPerExample(name)
        factor = self._factor(name, 0 if transposed else 1, x)
        # Position k of a grouped weight reads channel k of every group.
        factor = factor.repeat(1, x.shape[1] // factor.shape[1])
        return x * factor.view(*factor.shape, *[1] * spatial)

    def _on_map(self, name: str, output: Tensor) -> Tensor:
        factor = self._factor(name, 0, output)
        return output * factor.view(*factor.shape, *[1] * (output.dim() - 2))

    def run(self, call: Callable[[], Any]) -> Any:
        """What `call`, which runs the network, returns.

        Raises:
            NotPerExample: a reader that takes no factors, or that was not met (its weight is computed).
        """
        hooks = [
            module.register_forward_hook(lambda _module, _args, output, name=name: self._on_map(name, output))
            for name, module in self._maps.items()
            if name in self.axes
        ]
        try:
            with self:
                output = call()
        finally:
            for hook in hooks:
                hook.remove()
        if left := self.axes.keys() - self.seen:
            raise NotPerExample(min(left))
        return output


class GivenFactors(ExampleFactors):
    """The same with factors that are known.

    Args: as :class:`ExampleFactors`, and
        values: `{group: [examples, channels]}`; channels of other groups keep 1.
    """

    def __init__(
        self,
        net: nn.Module,
        table: ChannelTable,
        values: Mapping[str, Tensor],
        tensors: Mapping[str, Tensor] | None = None,
    ) -> None:
        first = next(iter(values.values()))
        super().__init__(net, table, len(first), tensors)
        ones = first.new_ones(len(first), 1)
        parts = [values.get(group.name, ones.expand(-1, group.channels)) for group in table]
        self._flat = torch.cat([ones, *parts], 1)

    def factors(self, name: str, units: Tensor, like: Tensor) -> Tensor:
        return self._flat[:, units.to(self._flat.device)].to(like.dtype)


def _argument(args: tuple[Any, ...], kwargs: Mapping[str, Any], place: int, name: str) -> Any:
    return args[place] if len(args) > place else kwargs.get(name)
