"""What a run is asked for and what it has done so far."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from pyrobnn.channels import ChannelTable, PruningPlan, resize_to
from pyrobnn.data import Data
from pyrobnn.inference.batchnorm import reestimate_batchnorm
from pyrobnn.inference.precision import channels_last, cpu_has_bf16, resolve_device, resolve_precision
from pyrobnn.inference.progress import say
from pyrobnn.likelihoods import Categorical, Likelihood
from pyrobnn.metrics.evaluate import evaluate
from pyrobnn.nets.calling import set_mode
from pyrobnn.pipeline.config import CompressionConfig
from pyrobnn.pipeline.distillation import Teaching
from pyrobnn.pipeline.journal import Carry, Journal
from pyrobnn.pipeline.method import Method
from pyrobnn.pipeline.recipe import Recipe
from pyrobnn.pipeline.schedule import Epochs
from pyrobnn.summary.state import from_state
from pyrobnn.summary.types import Posterior

State = dict[str, Tensor]


def state_of(net: nn.Module) -> State:
    """A detached CPU copy of a network's tensors."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in net.state_dict().items()}


class RunState:
    """What a run was asked for, what it has done so far, and its networks as they stand.

    Attributes:
        template: the dense network, for its architecture.
        table: channel table of the dense network.
        data, method, request, epochs: as asked for.
        journal: steps done and the data that goes from one to the next.

    The carry holds: `dense` (tensors), `net` (tensors of the current plain network), `plan` (JSON,
    original coordinates), `guide` (its state, or None), `posterior`, `epochs` (passes by phase),
    `rounds` (one entry per cut) and `accepted` (the last state whose validation was good enough).
    """

    def __init__(
        self,
        net: nn.Module,
        table: ChannelTable,
        data: Data,
        method: Method,
        request: CompressionConfig,
        recipe: Recipe,
        epochs: Epochs,
        journal: Journal,
        *,
        trained: bool,
        likelihood: Likelihood | None = None,
    ) -> None:
        self.template, self.table, self.data = net, table, data
        self.method, self.request, self.epochs, self.journal = method, request, epochs, journal
        self.trained, self.likelihood, self.progress = trained, likelihood, request.progress
        self.recipe = recipe
        self.teaching = Teaching(self)
        self.device = resolve_device(request.device)
        self.autocast = resolve_precision(request.precision, self.device, net, data.example)
        cost = table.cost(None)
        self.dense_cost = (float(cost.params), float(cost.macs))

    # What was asked for

    @property
    def classifies(self) -> bool:
        """Whether the network's output are logits of classes, which a teacher can soften."""
        return isinstance(self.likelihood or Categorical(), Categorical)

    def quick(self) -> torch.dtype | None:
        """The precision of passes without gradients that are made in every step."""
        if self.request.precision == "auto" and self.device.type == "cpu" and cpu_has_bf16():
            return torch.bfloat16
        return self.autocast

    def seed(self, step: str) -> int:
        """A seed per step, so that no step depends on how many draws another made."""
        digest = hashlib.sha256(f"{self.request.seed}/{step}".encode()).digest()
        return int.from_bytes(digest[:6], "big")

    def say(self, text: str, style: str = "yellow") -> None:
        """One line to the terminal, unless the run is quiet; yellow is for what was given up or missed."""
        if self.progress:
            say(text, style)

    # Reading the carry

    @property
    def carry(self) -> Carry:
        """What the steps so far have left."""
        return self.journal.carry

    @property
    def plan(self) -> PruningPlan:
        """All cuts so far, in original coordinates."""
        text = self.carry.get("plan")
        return PruningPlan.full(self.table) if text is None else PruningPlan.from_json(text)

    def net(self, key: str = "net") -> nn.Module:
        """The plain network stored under a key, on the run's device."""
        return resize_to(self.template, self.carry[key]).to(self.device)

    def current_table(self) -> ChannelTable:
        """Channel table of the current network."""
        plan = self.plan
        return self.table if plan.is_full else self.table.after(plan)

    def posterior(self) -> Posterior:
        """The posterior so far, all rounds merged."""
        return from_state(self.carry["posterior"]) if "posterior" in self.carry else Posterior({}, {})

    def left(self, plan: PruningPlan | None = None) -> dict[str, float]:
        """Share of the dense MACs and parameters that a plan (original coordinates) leaves."""
        plan = plan or self.plan
        masks = {}
        for name, units in plan.keep.items():
            masks[name] = torch.zeros(plan.channels[name], dtype=torch.float64)
            masks[name][units] = 1.0
        cost = self.table.cost(masks)
        return {"params": float(cost.params) / self.dense_cost[0], "macs": float(cost.macs) / self.dense_cost[1]}

    # Measuring on validation data

    def validation_accuracy(self, net: nn.Module) -> float:
        """Accuracy on the validation part."""
        net = channels_last(set_mode(net.to(self.device), False))
        precision = "fp32" if self.autocast is None else "bf16"
        return evaluate(net, self.data.valid, device=self.device, precision=precision, channels_last=True).accuracy

    def refreshed(self, net: nn.Module) -> nn.Module:
        """The network with BatchNorm statistics measured again."""
        return reestimate_batchnorm(net.to(self.device), self.data.train, device=self.device, autocast=self.autocast)


def in_original(record: dict[str, Tensor], plan: PruningPlan) -> dict[str, Tensor]:
    """The statistic of every channel in original coordinates, NaN where it was already cut."""
    found = {}
    for name, values in record.items():
        full = torch.full((plan.channels[name],), float("nan"))
        full[torch.as_tensor(plan.keep[name], dtype=torch.long)] = values
        found[name] = full
    return found
