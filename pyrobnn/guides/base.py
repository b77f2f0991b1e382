"""Base of the package's guides: parameter layouts that say how to cut them, and posterior moments."""

from __future__ import annotations

import copy as copying
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from pyro.nn import PyroModule
from torch import Tensor

if TYPE_CHECKING:
    from pyrobnn.channels import ChannelTable
    from pyrobnn.model import BayesianModel


@dataclass(frozen=True)
class LikeTensor:
    """A guide parameter shaped like the network tensor `name`, cut as that tensor is cut."""

    name: str


@dataclass(frozen=True)
class PerChannel:
    """A guide parameter whose axis `axis` runs over the channels of `group`."""

    group: str
    axis: int = 0


@dataclass(frozen=True)
class PerKernel:
    """A guide parameter `[rows, 1, …]` with one entry per row (axis 0) of the network tensor `name`."""

    name: str


Layout = LikeTensor | PerChannel | PerKernel


def cut(value: Tensor, layout: Layout | None, table: ChannelTable, plan: Any) -> Tensor:
    """Slice a tensor (parameter, buffer or optimiser moment) to the plan; unchanged without layout."""
    if layout is None:
        return value
    if isinstance(layout, LikeTensor):
        return table.slice(layout.name, value, plan)
    if isinstance(layout, PerKernel):
        shape = table.facts.shapes[layout.name]
        rows = table.slice(layout.name, value.expand(shape), plan)
        return rows[(slice(None), *[slice(0, 1)] * (value.dim() - 1))]
    keep = plan.keep.get(layout.group)
    if keep is None:
        return value
    return value.index_select(layout.axis, torch.as_tensor(keep, dtype=torch.long, device=value.device))


def site_layout(model: BayesianModel, site: str) -> LikeTensor | PerChannel | None:
    """How a site's value is cut: like the tensor that it is named after (its gates too), or per channel of its group."""
    # Tensors first: "conv1.weight" also looks like a site of the group "conv1".
    for name in (site, site.removesuffix(".gate"), site.removeprefix("gate_logit.")):
        if name in model.tensor_names:
            return LikeTensor(name)
    group = model.group_of_site(site)
    return PerChannel(group) if group is not None else None


def site_key(site: str) -> str:
    """A site name as a ParameterDict key, which may not hold dots; no two names have one key.

    >>> site_key("a.b"), site_key("a|b")
    ('a|b', 'a%7Cb')
    """
    return site.replace("%", "%25").replace("|", "%7C").replace(".", "|")


class Guide(PyroModule):
    """Base of the package's guides.

    Attributes:
        layout: `{parameter or buffer name of this guide: LikeTensor | PerChannel | PerKernel}`; names as in
            `named_parameters()`. What has no entry is not cut.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layout: dict[str, Layout] = {}
        self.start_scales: dict[str, float] | None = None  # median σ by site at the first call
        self.at_curvature = False  # it started where the likelihood's curvature leaves it, see start_at

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.note_start()
        return super().__call__(*args, **kwargs)

    def note_start(self) -> None:
        """Remember the widths of now as the start, unless there is one already."""
        if self.start_scales is None:
            self.start_scales = {site: float(scale.median()) for site, (_, scale) in self.moments().items()}

    @property
    def start(self) -> dict[str, Any]:
        """Where it started, as plain values, for the rounds that go on from here."""
        return {"scales": self.start_scales, "at_curvature": self.at_curvature}

    @start.setter
    def start(self, known: Mapping[str, Any]) -> None:
        self.start_scales, self.at_curvature = known["scales"], known["at_curvature"]

    def attach(self, model: BayesianModel) -> None:
        """Take up the model that this guide belongs to, at the start and after a cut; nothing by default."""

    def moments(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Posterior mean and standard deviation of every site, `{site: (mean, sd)}`, without gradients."""
        raise TypeError(f"{type(self).__name__} must define moments()")

    def lr_factor(self, parameter: str) -> float:
        """Factor on the guide's learning rate for one of its parameters, by name."""
        return 1.0

    def inclusion(self) -> dict[str, Tensor]:
        """Posterior inclusion probability per channel, `{group: [channels]}`, for guides that have gates."""
        return {}

    def nats(self, weights: Mapping[str, float] | None = None, kl_weight: float = 1.0) -> dict[str, Tensor]:
        """Nats of log-likelihood lost if a channel goes, `{group: [channels]}`, where the guide knows more than its inclusion.

        Of one scale for all groups; scores without one are :meth:`shares`. The weights are those that the posterior was
        fitted with: the same width says ten times the curvature under ten times the KL.

        Args:
            weights: `{group: w}` of the KL of the channels' sites; `kl_weight` for a group that is not named.
            kl_weight: of the whole KL.
        """
        return {}

    def shares(self) -> dict[str, Tensor]:
        """What each channel has of its group, `{group: [channels]}`, where the guide's scores add up but have no unit.

        What a removal costs is then read from how the channels of one group compare.
        """
        return {}

    def start_at(self, information: Mapping[str, Tensor], weights: Mapping[str, float], kl_weight: float = 1.0) -> None:
        """Move channel-level widths or odds, in place, to where a likelihood of known curvature would leave them.

        The log-likelihood is taken to be −½ F_c (θ_c − 1)² in the factor on channel c, the KL of the channel's site to
        count `weights` times (and that of other sites `kl_weight` times). Guides without channel-level sites stay as
        they are.

        Args:
            information: F, `{group: [channels]}`.
            weights: `{group: w}`; `kl_weight` for a group that is not named.
            kl_weight: of the whole KL.
        """

    def weight_odds(self) -> dict[str, Tensor]:
        """Log-odds that a weight is in use, `{tensor name: tensor's shape}`, for guides that decide weight by weight."""
        return {}

    def shrink(self, table: ChannelTable, plan: Any, *, copy: bool = True) -> Guide:
        """A copy whose tensors are cut to `plan` (coordinates of the current network); the guide itself without `copy`."""
        small = copying.deepcopy(self) if copy else self
        for name, layout in self.layout.items():
            *path, leaf = name.split(".")
            owner: Any = small
            for part in path:
                owner = getattr(owner, part)
            registry = owner._parameters if leaf in owner._parameters else owner._buffers
            old = registry[leaf]
            new = cut(old.detach(), layout, table, plan).clone()
            registry[leaf] = (
                torch.nn.Parameter(new, requires_grad=old.requires_grad) if leaf in owner._parameters else new
            )
        return small
