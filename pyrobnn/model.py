"""The Pyro model: a plain network, a prior over its tensors, and a likelihood in a plate."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.nn import PyroModule
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim.optimizer import register_optimizer_step_post_hook

from pyrobnn.errors import ConfigError, DataError
from pyrobnn.likelihoods import Categorical, Likelihood
from pyrobnn.priors.base import NetView, Prior, PriorFunction

if TYPE_CHECKING:
    from pyrobnn.channels import ChannelTable

_NORMS = nn.modules.batchnorm._BatchNorm


class BayesianModel(PyroModule):
    """A network whose tensors come from `pyro.sample` statements.

    `forward(x, y=None)` runs the prior, calls the network with the sampled tensors
    (`torch.func.functional_call`), and observes `y` in a plate scaled to `data_size`.
    It is an ordinary Pyro model: `SVI`, `Predictive`, `poutine` and AutoGuides take it as is.

    The network is copied, the caller's stays as it was. A parameter that has a sample site is
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
        placement: where channel noise acts, `"in"` (consumer slices) or `"auto"` (see
            :class:`~pyrobnn.groups.GateMap`).

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
        placement: str = "in",
    ) -> None:
        super().__init__()
        if data_size < 1:
            raise ConfigError(f"data_size must be the number of training examples (at least 1), got {data_size}")
        net = copy.deepcopy(net)
        self.net = net
        self.data_size = int(data_size)
        self.likelihood: Likelihood = likelihood or Categorical()
        self.placement = placement
        self.autocast: torch.dtype | None = None
        self._table = (groups,)
        self._gates = (_gate_map(groups, placement),)
        self._prior = (prior,)
        self._last_update: tuple[Any, tuple[int, int]] | None = None
        self.seen: tuple[Tensor, ...] = ()  # one example, for guides that are functions of the batch
        self.function_guides: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
        self.tensor_names = {name for name, _ in net.named_parameters()} | {name for name, _ in net.named_buffers()}
        self.held = tuple(self._random_names(prior, net))
        for name in self.held:
            _hold_as_buffer(net, name)
        self._has_norms = any(isinstance(m, _NORMS) and m.track_running_stats for m in net.modules())
        if self._has_norms and not any(True for _ in net.parameters()):
            _count_steps()

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
    def _bare_net(self) -> nn.Module:
        net = self._modules["net"]
        assert net is not None
        return net

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
        return NetView(tensors, self.groups or [], self._gates[0])

    def view(self) -> NetView:
        """What the prior sees now."""
        return self._view(self._bare_net)  # past __getattr__, which would announce parameters again

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
            x: what the network takes, `[B, ...]` on the device of its parameters.
            y: targets `[B]` or `[B, ...]`; None samples the site `obs` (prior or posterior predictive).

        Returns:
            The network's output; the likelihood of the batch is scaled to `data_size` examples.

        Raises:
            ConfigError: the prior returns a value for no tensor of the network, or several draws at once are asked for.
            DataError: targets of another shape than the likelihood's.
        """
        _refuse_vectorised()
        net = self.net  # this look-up is what shows the deterministic parameters to Pyro
        values = self.values()
        output = self.call_net(net, values, x)
        self.seen = _first_example(x, y)
        size = len(y) if y is not None else len(output)
        distribution = self.likelihood(output)
        if y is not None and distribution.shape() != y.shape:  # it would broadcast, silently
            raise DataError(
                f"the likelihood of this output expects targets of shape {tuple(distribution.shape())}, "
                f"got {tuple(y.shape)}: reshape the targets or the output"
            )
        # Explicit indices: pyro.plate would otherwise draw a permutation of all N at every step.
        with pyro.plate("data", self.data_size, subsample=torch.arange(size), device="cpu"):
            pyro.sample("obs", distribution, obs=y)
        return output

    def call_net(self, net: nn.Module, values: dict[str, Tensor], x: Any) -> Tensor:
        """Call the network with these tensors, under autocast if set, statistics once per step."""
        if self._has_norms and net.training and not self._may_update(x):
            values = {**values, **copied_statistics(net, values)}
        device = x.device.type if isinstance(x, Tensor) else "cpu"
        cast = torch.autocast(device, dtype=self.autocast) if self.autocast is not None else nullcontext()
        with cast:
            return functional_call(net, values, (x,))

    def _may_update(self, x: Any) -> bool:
        if any(isinstance(handler, InitMessenger) for handler in _PYRO_STACK):
            return False
        step = (_steps[0], sum(p._version for p in self.net.parameters()))
        last, self._last_update = self._last_update, None
        try:
            self._last_update = (weakref.ref(x), step)
        except TypeError:
            return True
        return last is None or last[0]() is not x or last[1] != step

    def sites(self) -> dict[str, Any]:
        """The latent sites, `{name: Pyro site}`, from a run of the prior alone (RNG state kept)."""
        with torch.no_grad(), torch.random.fork_rng(devices=[]), poutine.block():
            trace = poutine.trace(self.values).get_trace()
        return {n: s for n, s in trace.nodes.items() if s["type"] == "sample" and not s["is_observed"]}

    def initial_values(self) -> dict[str, Tensor]:
        """Where guides start: trained values for weight sites, what the prior says for others."""
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
            self._last_update = None

    def initialise(self, batch: tuple[Any, ...], guide: Any) -> None:
        """Materialise a lazy guide (AutoGuides make their parameters at the first call).

        BatchNorm statistics and the RNG state are as before afterwards.
        """
        self.seen = _first_example(*batch)
        with self.frozen_statistics(), torch.no_grad():
            guide(*batch)

    def deterministic(self, values: dict[str, Tensor]) -> nn.Module:
        """A plain copy of the network at given site values, `{site: tensor}`.

        What the prior does with the values (gates folded into weights, say) is done once; tensors
        that were held as buffers are parameters again. Sites without a value are sampled.
        """
        with torch.no_grad(), torch.random.fork_rng(devices=[]), poutine.block():
            tensors = poutine.condition(self.values, data=values)()
        net = copy.deepcopy(self._bare_net)
        buffers = dict(net.named_buffers())
        for name in {*self.held, *tensors}:
            module, leaf = _owner(net, name)
            value = (tensors[name] if name in tensors else buffers[name]).detach().clone()
            if name in self.held:
                del module._buffers[leaf]
                module.register_parameter(leaf, nn.Parameter(value))
            elif leaf in module._buffers:
                module._buffers[leaf] = value
            else:
                module._parameters[leaf] = nn.Parameter(value)
        return net

    def with_net(self, net: nn.Module, groups: ChannelTable | None, prior: Any) -> BayesianModel:
        """The same model around another (smaller) network."""
        model = BayesianModel(
            net, prior, data_size=self.data_size, groups=groups, likelihood=self.likelihood, placement=self.placement
        )
        model.autocast, model.seen = self.autocast, self.seen
        return model.train(self.training)


def _refuse_vectorised() -> None:
    """A plate around the model would add a dimension to every weight, which no layer takes."""
    if any(isinstance(handler, pyro.plate) for handler in _PYRO_STACK):
        raise ConfigError(
            "a network takes one draw at a time: use Predictive(..., parallel=False), ELBOs with "
            "vectorize_particles=False, and no pyro.plate around the model"
        )


def _first_example(*batch: Any) -> tuple[Tensor, ...]:
    return tuple(part[:1].detach() for part in batch if isinstance(part, Tensor))


def _gate_map(groups: ChannelTable | None, placement: str) -> Any:
    if not groups:
        return None
    from pyrobnn.channels import GateMap

    return GateMap(groups, placement)


def _owner(net: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return net.get_submodule(path), leaf


def _hold_as_buffer(net: nn.Module, name: str) -> None:
    module, leaf = _owner(net, name)
    value = getattr(module, leaf)
    delattr(module, leaf)
    module.register_buffer(leaf, value.detach().clone())


def copied_statistics(net: nn.Module, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the statistics, to be updated in their place; those that a prior has replaced stay replaced."""
    copies = {}
    for path, module in net.named_modules():
        if isinstance(module, _NORMS):
            for leaf, buffer in module.named_buffers(recurse=False):
                name = f"{path}.{leaf}" if path else leaf
                if (
                    leaf in ("running_mean", "running_var", "num_batches_tracked")
                    and values.get(name, buffer) is buffer
                ):
                    copies[name] = buffer.clone()
    return copies


# Optimiser steps in this process, counted once a model asks. With every parameter random there is no version
# counter in the network that would tell the next step on the same batch from another particle of this one.
_steps = [0]


@cache
def _count_steps() -> None:
    def count(*_: Any) -> None:
        _steps[0] += 1

    register_optimizer_step_post_hook(count)
