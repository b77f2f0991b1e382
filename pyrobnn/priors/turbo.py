"""The three-layer prior of Turbo-VBI: support → precision → weight.

    s ~ binary chains over filters and inside them
    ρ_n | s_n ~ Γ(a, b) if s_n = 1 else Γ(ā, b̄)         (shape, rate)
    w_n | ρ_n ~ N(0, 1/ρ_n)

Source: Xia, Tsang, Lau 2023 (IEEE TSP 71) for the hierarchy and its use in networks; Liu et al. 2020
for the update formulas and defaults a = b = ā = 1, b̄ = 1e-5. The layout of the chains on a
convolution (a filter's input channels × kernel taps in a row, filters below each other) is
reconstructed.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from pyrobnn.distributions.chains import TwoLevelChain
from pyrobnn.distributions.crossing import CrossingChains
from pyrobnn.errors import ConfigError
from pyrobnn.priors.base import ONE_EACH, NetView, WeightPrior
from pyrobnn.priors.turbo_marginal import ClusteredStudentT

if TYPE_CHECKING:
    from pyrobnn.channels import ChannelTable


def matrix_shape(shape: torch.Size | tuple[int, ...]) -> tuple[int, int]:
    """`(filters, length)` of a weight tensor read as a matrix; axis 0 counts the filters.

    >>> matrix_shape((20, 3, 5, 5))
    (20, 75)
    """
    return shape[0], torch.Size(shape[1:]).numel()


@dataclass(frozen=True)
class Transitions:
    """Transition probabilities of a support.

    Attributes:
        p01, p10: P(0 → 1) and P(1 → 0) along a filter's weights.
        filter_p01, filter_p10: the same from filter to filter (down a column for crossing chains).

    A live filter pays -log(1 − p01) for each weight that stays off, so p01 must be small where rows are
    long: at 0.2 a filter of 144 weights that needs three of them costs 30 nats and is declared empty
    against the data. 0.1 to 0.3 suits short rows and dense clusters. EM moves the values towards the data.
    """

    p01: float = 0.03
    p10: float = 0.2
    filter_p01: float = 0.2
    filter_p10: float = 0.2

    def __post_init__(self) -> None:
        for name, value in self.__dict__.items():
            if not 0 < value < 1:
                raise ConfigError(f"{name} must be a probability strictly between 0 and 1, got {value}")

    def values(self) -> tuple[float, float, float, float]:
        """All four, in the order of the attributes."""
        return self.p01, self.p10, self.filter_p01, self.filter_p10


@dataclass(frozen=True)
class PrecisionPrior:
    """The two Gamma priors of a precision, as (shape, rate).

    Attributes:
        a, b: of weights in the support; a/b is their typical precision.
        a_off, b_off: of weights outside; a_off/b_off must be much larger.
    """

    a: float = 1.0
    b: float = 1.0
    a_off: float = 1.0
    b_off: float = 1e-5

    def __post_init__(self) -> None:
        if min(self.a, self.b, self.a_off, self.b_off) <= 0:
            raise ConfigError(f"shapes and rates must be positive, got {self}")
        if self.a_off / self.b_off <= self.a / self.b:
            raise ConfigError(
                f"weights outside the support need the larger precision: expected a_off/b_off > a/b, got "
                f"{self.a_off / self.b_off:g} ≤ {self.a / self.b:g}; make b_off smaller"
            )

    def scaled(self, square: float) -> PrecisionPrior:
        """The same prior for weights whose unit is √square: rates grow with it."""
        return PrecisionPrior(self.a, self.b * square, self.a_off, self.b_off * square)


class GatedGamma(TorchDistribution):
    """p(ρ | s) = Π Γ(ρ_n; a, b)^{s_n} Γ(ρ_n; ā, b̄)^{1−s_n}, as one event of the support's shape.

    Args:
        support: s, 0 or 1, `[*batch, *event]`. Between 0 and 1, `log_prob` is the expected
            log-density under independent supports with that mean (it is linear in s).
        prior: the two Gamma priors.
        event_dim: number of dimensions of the event.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"gate": constraints.unit_interval}
    has_rsample = False

    def __init__(
        self, support: Tensor, prior: PrecisionPrior, event_dim: int, *, validate_args: bool | None = None
    ) -> None:
        self.gate, self.prior = support, prior
        cut = support.dim() - event_dim
        super().__init__(support.shape[:cut], support.shape[cut:], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> Any:
        return constraints.independent(constraints.positive, len(self.event_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> GatedGamma:
        gate = self.gate.expand(torch.Size(batch_shape) + self.event_shape)
        return GatedGamma(gate, self.prior, len(self.event_shape), validate_args=False)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws of ρ given the support, rounded at ½."""
        p, on = self.prior, self.gate > 0.5
        shape = torch.where(on, p.a, p.a_off).to(self.gate.dtype)
        rate = torch.where(on, p.b, p.b_off).to(self.gate.dtype)
        return torch.distributions.Gamma(shape, rate).sample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density, `[*batch]`."""
        if self._validate_args:
            self._validate_sample(value)
        p, one = self.prior, torch.ones((), dtype=value.dtype, device=value.device)
        on = torch.distributions.Gamma(p.a * one, p.b * one).log_prob(value)
        off = torch.distributions.Gamma(p.a_off * one, p.b_off * one).log_prob(value)
        mixed = self.gate * on + (1 - self.gate) * off
        return mixed.sum(tuple(range(-len(self.event_shape), 0)))


@dataclass
class Turbo(WeightPrior):
    """Weights with clustered supports: the three-layer prior above on every selected tensor.

    For a tensor `conv.weight` the sites are `conv.weight.support` (`[filters, length]`),
    `conv.weight.precision` and `conv.weight` (both of the tensor's shape), for
    :class:`~pyrobnn.guides.TurboGuide`. With `form="marginal"` support and precisions are summed out exactly and
    `conv.weight` is the only site (:class:`~pyrobnn.priors.turbo_marginal.ClusteredStudentT`): AutoGuides, `MeanField`
    and NUTS take that form.

    Attributes:
        transitions: of the support's chains; small values make long runs.
        precision: the two Gamma priors.
        relative: measure weights in units of each tensor's root mean square at the start, so that one
            setting fits all layers; False takes the rates as they are.
        structure: `"two-level"` (exact) or `"crossing"` (row and column chains, approximate). Crossing chains
            strengthen each other: set their transitions to 0.3 or so; with the default ones, made for two
            levels, a draw of a large tensor is nearly all on.

        form: `"hierarchical"` (three sites a tensor) or `"marginal"` (one; with the two-level structure).

    Raises:
        ConfigError: an unknown structure or form, or settings outside their range.
    """

    transitions: Transitions = field(default_factory=Transitions)
    precision: PrecisionPrior = field(default_factory=PrecisionPrior)
    relative: bool = True
    structure: str = "two-level"
    form: str = "hierarchical"

    def __post_init__(self) -> None:
        if self.structure not in ("two-level", "crossing"):
            raise ConfigError(f"structure must be 'two-level' or 'crossing', got {self.structure!r}")
        if self.form not in ("hierarchical", "marginal"):
            raise ConfigError(f"form must be 'hierarchical' or 'marginal', got {self.form!r}")
        if self.form == "marginal" and self.structure == "crossing":
            raise ConfigError(
                "crossing chains cannot be summed out exactly: use structure='two-level' with form='marginal'"
            )
        self.learned: dict[str, Transitions] = {}
        self.squares: dict[str, float] = {}
        self._keep_units = False

    def random(self, net: nn.Module) -> list[str]:
        names = super().random(net)
        if not self._keep_units:
            tensors = dict(net.named_parameters())
            found = {name: float(tensors[name].detach().float().square().mean()) or 1.0 for name in names}
            if not self.relative:
                found = dict.fromkeys(names, 1.0)
            if self.squares not in ({}, found) or self.learned:
                raise ConfigError(ONE_EACH)
            self.squares = found
        return names

    def shrink(self, table: ChannelTable, plan: Any) -> Turbo:
        """The prior of the smaller network: a cut tensor keeps the unit and the chains it had."""
        small = copy.copy(self)
        small.learned, small.squares, small._keep_units = dict(self.learned), dict(self.squares), True
        return small

    def state_dict(self) -> dict[str, Any]:
        return {"squares": dict(self.squares)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.squares, self._keep_units = dict(state["squares"]), True

    def transitions_of(self, name: str) -> Transitions:
        """What EM has learned for this tensor, or the setting."""
        return self.learned.get(name, self.transitions)

    def precision_of(self, name: str) -> PrecisionPrior:
        """The Gamma priors in the tensor's own unit."""
        return self.precision.scaled(self.squares[name])

    def adopt(self, transitions: Mapping[str, Transitions], b_off: float | None = None) -> None:
        """Take over what the guide has learned, so that prior draws and messages agree with it."""
        self.learned = dict(transitions)
        if b_off is not None:
            p = self.precision
            self.precision = PrecisionPrior(p.a, p.b, p.a_off, b_off)

    def support_prior(self, name: str, filters: int, length: int) -> TwoLevelChain | CrossingChains:
        """The distribution of one tensor's support."""
        chains = TwoLevelChain if self.structure == "two-level" else CrossingChains
        # The guide hands over means between 0 and 1, which are no draws: no validation.
        return chains(*self.transitions_of(name).values(), filters, length, validate_args=False)

    def __call__(self, view: NetView) -> dict[str, Tensor]:
        values = {}
        for name in view.random:
            like = view.tensors[name]
            chains = self.support_prior(name, *matrix_shape(like.shape))
            if isinstance(chains, TwoLevelChain) and self.form == "marginal":
                values[name] = pyro.sample(name, ClusteredStudentT(chains, self.precision_of(name), like.shape, like))
                continue
            support = pyro.sample(f"{name}.support", chains)
            gate = support.reshape(*support.shape[:-2], *like.shape).to(like.device)
            gamma = GatedGamma(gate, self.precision_of(name), like.dim(), validate_args=False)
            precision = pyro.sample(f"{name}.precision", gamma)
            values[name] = pyro.sample(name, dist.Normal(0.0, precision.rsqrt()).to_event(like.dim()))
        return values
