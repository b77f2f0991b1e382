"""The Pyro model: a plain network, a prior over its tensors, and a likelihood in a plate."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.nn import PyroModule
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor, nn

from pyrobnn.channels.by_example import GivenFactors
from pyrobnn.channels.gates import GateMap
from pyrobnn.channels.held import HeldParameters
from pyrobnn.channels.surgery import Sites
from pyrobnn.errors import ConfigError
from pyrobnn.likelihoods import OF_TENSORS, Categorical, Likelihood, as_observed
from pyrobnn.nets.calling import arguments, batch_for, main_output
from pyrobnn.nets.functional import call_with
from pyrobnn.nets.recomputing import call_outliving, recomputed_tensor
from pyrobnn.nets.replica import copy_net
from pyrobnn.nets.statistics import OncePerStep, copied_statistics, tracks_statistics
from pyrobnn.priors.base import NetView, Prior, PriorFunction

if TYPE_CHECKING:
    from pyrobnn.channels import ChannelTable


class BayesianModel(PyroModule):
    """A network whose tensors come from `pyro.sample` statements.

    `forward(x, y=None)` runs the prior, calls the network with the sampled tensors
    (as `torch.func.functional_call` does), and observes `y` in a plate scaled to `data_size`.
    It is an ordinary Pyro model: `SVI`, `Predictive` and `poutine` take it as is, and so do AutoGuides and NUTS where
    the prior has continuous sites (:func:`pyrobnn.guides.auto` starts an AutoGuide at the network's weights).

    The network is copied; the caller's is not changed. A parameter that has a sample site is
    held as a buffer with its initial value; the other parameters are trained with the guide.
    BatchNorm statistics move once per step: not in the extra runs that an AutoGuide makes to set
    itself up, and not again for further particles on the same batch.

    Args:
        net: any module; its output goes to the likelihood.
        prior: a :class:`~pyrobnn.priors.base.Prior`, or a function of a
            :class:`~pyrobnn.priors.base.NetView`; None makes nothing random.
        data_size: number of training examples N; the log-likelihood of a batch is scaled by N / B.
        groups: the channel table; needed by priors that act on channels and for cutting.
        likelihood: maps outputs to a distribution; categorical by default.
        copy: False gives the network itself to the model, which changes it; for one that was made for the model.

    Raises:
        ConfigError: `data_size` below 1, or a prior that returns tensors the network does not have.

    Shape:
        x `[B, ...]` as the network takes it; y `[B]` (or `[B, D]`); returns the network's output.
    """

    def __init__(
        self,
        net: nn.Module,
        prior: Prior | PriorFunction | None = None,
        *,
        data_size: int,
        groups: ChannelTable | None = None,
        likelihood: Likelihood | None = None,
        copy: bool = True,
    ) -> None:
        super().__init__()
        if data_size < 1:
            raise ConfigError(f"data_size must be the number of training examples (at least 1), got {data_size}")
        if copy:
            net = copy_net(net)
        self.net = net
        self.data_size = int(data_size)
        self.likelihood: Likelihood = likelihood or Categorical()
        self.autocast: torch.dtype | None = None
        self._table = (groups,)
        self._gates = (GateMap(groups) if groups else None,)
        self._prior = (prior,)
        self._steps = OncePerStep()
        self.seen: tuple[Tensor, ...] = ()  # one example, for guides that are functions of the batch
        self.last_batch: tuple[Any, Tensor] | None = None  # with targets; held by reference
        self.history: list[dict[str, Any]] = []  # rows of the last fit
        self.example_factors: dict[str, Tensor] | None = None  # {group: [B, channels]} on what reads the channels
        self.function_guides: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
        self.tensor_names = {name for name, _ in net.named_parameters()} | {name for name, _ in net.named_buffers()}
        self._random: tuple[str, ...] = ()
        self._random = tuple(self._random_names(prior, net))
        self._held = HeldParameters(net, list(self._random))
        self._recomputes: str | None = None
        self._probed = False
        self._has_norms = tracks_statistics(net)

    # Tuples keep PyroModule from registering what is not a submodule.
    @property
    def groups(self) -> ChannelTable | None:
        """The channel table at the current widths."""
        return self._table[0]

    @property
    def prior(self) -> Prior | PriorFunction | None:
        """The prior given at construction."""
        return self._prior[0]

    @property
    def bare_net(self) -> nn.Module:
        """The network, without the attribute access that registers its parameters with Pyro."""
        net = self._modules["net"]
        assert net is not None
        return self._held.tie(net)

    @property
    def held(self) -> tuple[str, ...]:
        """Names of the parameters that have a sample site, held as buffers."""
        return self._held.names

    def _random_names(self, prior: Prior | PriorFunction | None, net: nn.Module) -> list[str]:
        if prior is None:
            return []
        if isinstance(prior, Prior):
            return prior.random(net)
        # A plain function: a site that bears a parameter's name replaces that parameter.
        with torch.no_grad(), torch.random.fork_rng(devices=[]), poutine.block():
            trace = poutine.trace(prior).get_trace(self._view(net))
        parameters = dict(net.named_parameters())
        return [name for name in trace.stochastic_nodes if name in parameters]

    def _view(self, net: nn.Module) -> NetView:
        tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
        return NetView(tensors, self.groups or [], self._gates[0], self._random)

    def view(self) -> NetView:
        """The network's tensors and channel groups, as the prior gets them."""
        return self._view(self.bare_net)

    def values(self) -> dict[str, Tensor]:
        """Run the prior's sample statements; the tensors to call the network with.

        Raises:
            ConfigError: the prior returns a tensor that the network does not have.
        """
        prior = self.prior
        if prior is None:
            return {}
        values = dict(prior(self.view()))
        if unknown := [name for name in values if name not in self.tensor_names]:
            raise ConfigError(f"the prior returns {unknown[0]!r}, which is no parameter or buffer of the network")
        return values

    def forward(self, x: Any, y: Tensor | None = None) -> Tensor:
        """The Pyro model: samples the prior's sites, calls the network, observes `y`.

        Args:
            x: what the network takes, `[B, ...]` on the device of its parameters; a tuple holds several arguments.
            y: targets `[B]` or `[B, ...]`; None samples the site `obs` (prior or posterior predictive).

        Returns:
            The network's output; the likelihood of the batch is scaled to `data_size` examples.

        Raises:
            ConfigError: the prior returns a value for no tensor of the network, or several draws at once are asked for.
            DataError: targets of another shape than the likelihood's.
        """
        _refuse_vectorised()
        net = self.net  # this look-up is what shows the deterministic parameters to Pyro
        output, distribution, observed, size = self.observed(net, self.values(), x, y)
        # Explicit indices: pyro.plate would otherwise draw a permutation of all N at every step.
        with pyro.plate("data", self.data_size, subsample=torch.arange(size), device="cpu"):
            pyro.sample("obs", distribution, obs=observed)
        return output

    def observed(
        self, net: nn.Module, values: dict[str, Tensor], x: Any, y: Tensor | None
    ) -> tuple[Tensor, dist.TorchDistribution, Tensor | None, int]:
        """Output of the network at these tensors, distribution of the targets, the targets in its dtype, and the batch size."""
        said = self.call_net(net, values, x, whole=True)
        output = main_output(said)
        self.seen = _first_example(x, y)
        if y is not None:
            self.last_batch = (x, y)
        size = len(y) if y is not None else len(output)
        distribution = self.density(said)
        return output, distribution, None if y is None else as_observed(distribution, y), size

    def density(self, said: Any) -> dist.TorchDistribution:
        """The distribution of the targets given the main output, or given all outputs for a likelihood of your own."""
        return self.likelihood(main_output(said) if isinstance(self.likelihood, OF_TENSORS) else said)

    def call_net(self, net: nn.Module, values: dict[str, Tensor], x: Any, whole: bool = False) -> Any:
        """Call the network with these tensors, under autocast if set, statistics once per step.

        The batch stays as it is; of several outputs the main one is returned (:func:`~pyrobnn.nets.main_output`), or
        with `whole` all of them.

        Raises:
            ConfigError: values that are not plain tensors, in a network that computes its activations again in the
                backward pass.
        """
        if self._has_norms and net.training and not self._may_update(x, values):
            values = {**values, **copied_statistics(net, values)}
        device = x.device.type if isinstance(x, Tensor) else "cpu"
        cast = torch.autocast(device, dtype=self.autocast) if self.autocast is not None else nullcontext()
        if not self._probed and net.training and torch.is_grad_enabled():
            self._recomputes, self._probed = recomputed_tensor(net, x), True
        with cast:
            if self._recomputes is not None and torch.is_grad_enabled():
                return self._call_recomputing(net, values, x)
            taken = arguments(batch_for(net, x))
            if self.example_factors is None:
                said = call_with(net, values, taken)
            else:
                assert self.groups is not None
                factors = GivenFactors(net, self.groups, self.example_factors, values)
                said = factors.run(lambda: call_with(net, values, taken))
        return said if whole else main_output(said)

    def _call_recomputing(self, net: nn.Module, values: dict[str, Tensor], x: Any) -> Tensor:
        if self.example_factors is not None or any(type(v) not in (Tensor, nn.Parameter) for v in values.values()):
            raise ConfigError(
                f"the network computes activations again in the backward pass (torch.utils.checkpoint; "
                f"{self._recomputes!r} is read there), which goes with estimator='weight' only: take that, or switch "
                "the checkpointing off"
            )
        return call_outliving(net, values, x)

    def _may_update(self, x: Any, values: dict[str, Tensor]) -> bool:
        """False in the runs of an AutoGuide's set-up and for further particles: the same batch, no parameter moved."""
        if any(isinstance(handler, InitMessenger) for handler in _PYRO_STACK):
            return False
        return self._steps.is_first(self.net, x, values)

    def forget_batch(self) -> None:
        """Treat the next call as a new step, even on the same batch: BatchNorm statistics are updated."""
        self._steps.forget()

    def sites(self) -> dict[str, Any]:
        """The latent sites, `{name: Pyro site}`, from a run of the prior alone (RNG state kept)."""
        with torch.no_grad(), torch.random.fork_rng(devices=[]), poutine.block():
            trace = poutine.trace(self.values).get_trace()
        return {n: s for n, s in trace.nodes.items() if s["type"] == "sample" and not s["is_observed"]}

    def initial_values(self) -> dict[str, Tensor]:
        """Initial values of guides: trained values for weight sites, the prior's `initial` for others."""
        if isinstance(self.prior, Prior):
            return self.prior.initial(self.view())
        tensors = self.view().tensors
        return {name: tensors[name].detach() for name in self.sites() if name in tensors}

    def group_of_site(self, site: str) -> str | None:
        """The channel group that a site named `<group>.<what>` belongs to, else None."""
        stem = site.rpartition(".")[0]
        return stem if any(group.name == stem for group in self.groups or []) else None

    @contextmanager
    def frozen_statistics(self) -> Iterator[None]:
        """Restore buffers and the RNG state on leaving."""
        buffers = {name: b.clone() for name, b in self.net.named_buffers()}
        devices = sorted({p.device.index for p in self.parameters() if p.is_cuda and p.device.index is not None})
        try:
            with torch.random.fork_rng(devices=devices):
                yield
        finally:
            with torch.no_grad():
                for name, b in self.net.named_buffers():
                    b.copy_(buffers[name])
            self._steps.forget()

    def initialise(self, batch: tuple[Any, ...], guide: Any) -> None:
        """Materialise a lazy guide (AutoGuides make their parameters at the first call).

        BatchNorm statistics and the RNG state are as before afterwards.
        """
        self.seen = _first_example(*batch)
        with self.frozen_statistics(), torch.no_grad():
            guide(*batch)

    def tensors_at(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors that the prior returns at given site values, `{site: tensor}`; sites without one are sampled."""
        with torch.no_grad(), torch.random.fork_rng(devices=[]), poutine.block():
            tensors: dict[str, Tensor] = poutine.condition(self.values, data=values)()
        return tensors

    def deterministic(self, values: dict[str, Tensor]) -> nn.Module:
        """A plain copy of the network at given site values, `{site: tensor}`.

        What the prior does with the values (gates folded into weights, say) is done once; tensors
        that were held as buffers are parameters again. Sites without a value are sampled.
        """
        tensors, net = self.tensors_at(values), copy_net(self.bare_net)
        sites = Sites(net)
        for name, value in tensors.items():
            if name not in self.held:
                if name in self._held.frozen:
                    warnings.warn(
                        f"{name!r} is frozen, but channel noise is folded into what reads the channels: it is scaled",
                        stacklevel=2,
                    )
                sites.put(name, value.detach().clone())
        return self.released(net, tensors)

    def released(self, net: nn.Module, values: Mapping[str, Tensor]) -> nn.Module:
        """Turn what is held as buffers in a copy of the network (also a cut one) into parameters again, in place.

        They get `values` where these have one; flags and order are those of the network the model was made from.
        """
        return self._held.released(net, values)

    def with_net(self, net: nn.Module, groups: ChannelTable | None, prior: Any) -> BayesianModel:
        """The same model around another (smaller) network, which is not copied."""
        model = BayesianModel(
            net, prior, data_size=self.data_size, groups=groups, likelihood=self.likelihood, copy=False
        )
        model.autocast, model.seen, model.last_batch = self.autocast, self.seen, self.last_batch
        model._probed, model._recomputes = self._probed, self._recomputes
        model.train(self.training)
        return model


def _refuse_vectorised() -> None:
    """A plate around the model would add a dimension to every weight, which no layer takes."""
    if any(isinstance(handler, pyro.plate) for handler in _PYRO_STACK):
        raise ConfigError(
            "a network takes one draw at a time: use Predictive(..., parallel=False), ELBOs with "
            "vectorize_particles=False, and no pyro.plate around the model"
        )


def _first_example(*batch: Any) -> tuple[Tensor, ...]:
    return tuple(part[:1].detach() for part in batch if isinstance(part, Tensor))
