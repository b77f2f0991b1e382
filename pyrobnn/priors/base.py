"""`Prior`: `pyro.sample` statements that return tensors for the network.

A prior is any callable that takes a :class:`NetView`, runs `pyro.sample` and
returns `{tensor name: value}`. The model hands those tensors to the network
with `torch.func.functional_call`; everything random lives in parameter space.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from pyrobnn.errors import ConfigError

if TYPE_CHECKING:
    from pyrobnn.channels import ChannelTable, GateMap

Selection = str | type[nn.Module] | Iterable[Any] | Callable[[str, nn.Module, Tensor], bool]
#: What is said where a prior that has read something from a network is given another one.
ONE_EACH = "this prior has read the units of its weights from another network: make a new prior for each model"
PriorFunction = Callable[["NetView"], Mapping[str, Tensor]]


@dataclass(frozen=True)
class NetView:
    """What a prior may look at: the network's current tensors and its channel groups.

    Attributes:
        tensors: every parameter and buffer by name; deterministic parameters carry gradients.
        groups: the channel table at the current widths (empty if the net was not analysed).
        gates: multiplies consumer slices by per-channel factors; None without groups.
        random: names of the parameters that the prior makes random in this network.
    """

    tensors: Mapping[str, Tensor]
    groups: ChannelTable | list[Any]
    gates: GateMap | None = None
    random: tuple[str, ...] = ()

    def gate(self, factors: Mapping[str, Tensor], tensors: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Multiply the consumer slices of each group by `factors[group]`, shape `[channels]`.

        Args:
            factors: one vector per gated group.
            tensors: values to start from where a prior has replaced some already.

        Returns:
            The changed tensors only, plus everything in `tensors`.

        Raises:
            ConfigError: the model was built without channel groups.
        """
        if self.gates is None:
            raise ConfigError(
                "this prior places noise on channels and needs the channel groups: "
                "pass groups=pb.channel_groups(net, example) to BayesianModel"
            )
        base = {**self.tensors, **(tensors or {})}
        gated = self.gates.apply(base, factors)
        return {**(tensors or {}), **{name: value for name, value in gated.items() if value is not base[name]}}


def selected(net: nn.Module, select: Selection) -> list[str]:
    """Names of the parameters that a selection picks; frozen ones (``requires_grad=False``) stay as they are.

    Args:
        net: the network.
        select: a pattern on parameter or module names (`"conv*"`), a module type
            (`nn.Conv2d`), a list of either, or `f(name, module, parameter) -> bool`.

    Returns:
        Parameter names in the order of `net.named_parameters()`.

    Raises:
        ConfigError: nothing matches, all that matches is frozen, or the selection is of no known kind.

    >>> selected(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), nn.Conv2d)
    ['0.weight', '0.bias']
    """
    owner = {}
    for module_name, module in net.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            owner[f"{module_name}.{name}" if module_name else name] = (module_name, module, parameter)

    def matches(how: Any, name: str) -> bool:
        module_name, module, parameter = owner[name]
        if isinstance(how, str):
            return fnmatch(name, how) or fnmatch(module_name, how)
        if isinstance(how, type):
            return isinstance(module, how)
        if callable(how):
            return bool(how(name, module, parameter))
        if isinstance(how, Iterable):
            return any(matches(one, name) for one in how)
        raise ConfigError(f"selection must be a name pattern, a module type, a function or a list of them, got {how!r}")

    names = [name for name, _ in net.named_parameters() if name in owner and matches(select, name)]
    if not names:
        raise ConfigError(
            f"the selection {select!r} picks no parameter; the network has {', '.join(list(owner)[:6])} …"
        )
    free = [name for name in names if owner[name][2].requires_grad]
    if not free:
        raise ConfigError(f"all that the selection {select!r} picks is frozen (requires_grad=False): {names[0]!r} …")
    return free


def kernels(name: str, module: nn.Module, parameter: Tensor) -> bool:
    """The default selection: weights of convolutions and linear layers (no bias, no normalisation)."""
    return parameter.dim() >= 2 and isinstance(module, nn.Linear | nn.modules.conv._ConvNd)


class Prior:
    """Base of the priors that ship with the package.

    Subclasses implement :meth:`__call__`; those whose sites *replace* parameters
    say which in :meth:`random`, so that the model keeps these as buffers and no
    dead parameter is left for the optimiser.
    """

    def random(self, net: nn.Module) -> list[str]:
        """Names of the parameters that are replaced by samples (empty for pure channel noise)."""
        return []

    def initial(self, view: NetView) -> dict[str, Tensor]:
        """Where a guide should start, per site; the default starts weight sites at the trained values."""
        return {}

    def shrink(self, table: ChannelTable, plan: Any) -> Prior:
        """The prior of the smaller network; override when per-channel settings are held."""
        return self

    def state_dict(self) -> dict[str, Any]:
        """What was read from the first network (units, widths) and holds for the smaller ones after it."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` returned; before a model is built with this prior."""

    def independent(self, view: NetView) -> dict[str, Any] | None:
        """The prior of every site, per coordinate, in the order of the sites; None where one depends on another's value.

        Sites that share a distribution share the object.
        """
        return None

    def place(self, view: NetView, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors for the network at these values of all sites."""
        return dict(values)

    def __call__(self, view: NetView) -> dict[str, Tensor]:
        """Run the sample statements; return the tensors for the network."""
        raise TypeError(f"{type(self).__name__} must define __call__(view)")


@dataclass
class WeightPrior(Prior):
    """Independent sites on parameters, one per selected tensor and named after it.

    Attributes:
        select: what is random (see :func:`selected`); default all convolution and linear weights.
    """

    select: Selection = field(default=kernels, kw_only=True)

    def random(self, net: nn.Module) -> list[str]:
        return selected(net, self.select)

    def distribution(self, name: str, value: Tensor) -> Any:
        """The prior of one tensor: a distribution with `value`'s shape as batch shape."""
        raise TypeError(f"{type(self).__name__} must define distribution(name, value)")

    def initial(self, view: NetView) -> dict[str, Tensor]:
        return {name: view.tensors[name].detach() for name in view.random}

    def independent(self, view: NetView) -> dict[str, Any] | None:
        if type(self).__call__ is not WeightPrior.__call__:
            return None
        return {name: self.distribution(name, view.tensors[name]) for name in view.random}

    def __call__(self, view: NetView) -> dict[str, Tensor]:
        import pyro

        values = {}
        for name in view.random:
            value = view.tensors[name]
            values[name] = pyro.sample(name, self.distribution(name, value).to_event(value.dim()))
        return values
