"""Curvature of the likelihood in channel gates: a second-order estimate of what the removal of a channel costs.

A gate θ_c = 1 multiplies channel c wherever it is read. The Fisher information of a gate,
F_c = N E[(∂ log p(y | x, θ) / ∂θ_c)²] with labels drawn from the network itself, is the curvature of the negative
log-likelihood of N examples at a trained network, so that removing the channel costs about ½ F_c nats. The gradient of
an example is summed over all positions and all readers of the channel *before* it is squared: a channel whose
readers cancel is worth nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.channels import ChannelTable, GateMap
from pyrobnn.channels.by_example import ExampleFactors, NotPerExample
from pyrobnn.errors import ConfigError, NumericalError
from pyrobnn.inference.scores import random_target, score
from pyrobnn.io.processes import current
from pyrobnn.likelihoods import OF_TENSORS, Categorical, Likelihood, ProfiledNormal
from pyrobnn.nets.calling import batch_for, eval_mode, main_output
from pyrobnn.nets.functional import call_with


class _ExampleGates(ExampleFactors):
    """Gives every example its own gates: one backward pass then has the gradients of all examples apart."""

    def __init__(self, net: nn.Module, table: ChannelTable, examples: int) -> None:
        super().__init__(net, table, examples)
        self.gates: dict[str, Tensor] = {}

    def factors(self, name: str, units: Tensor, like: Tensor) -> Tensor:
        if name not in self.gates:
            self.gates[name] = torch.ones(
                self.examples, len(units), dtype=like.dtype, device=like.device, requires_grad=True
            )
        return self.gates[name]

    def by_unit(self, gradients: Mapping[str, Tensor], units: int) -> Tensor:
        """`[examples, units]`: the gradients of all readers of a unit, summed."""
        found = next(iter(gradients.values())).new_zeros(self.examples, units + 1)
        for name, gradient in gradients.items():
            (positions,) = self.axes[name].values()
            found.index_add_(1, positions.to(found.device), gradient.to(found))
        return found[:, 1:]


Losses = Callable[[Any], "list[Tensor]"]


def gate_gradients(net: nn.Module, table: ChannelTable, x: Tensor, losses: Losses) -> list[dict[str, Tensor]]:
    """Gradients of losses in every channel's gate, example by example.

    Args:
        net: a network in evaluation mode (an example must not depend on its batch).
        table: its channel table.
        x: images `[B, …]`.
        losses: makes losses of the network's output, each `[B]`: one per example.

    Returns:
        For each loss `{group: [B, channels]}`.
    """
    gates = _ExampleGates(net, table, len(x))
    frozen = [p for p in net.parameters() if p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad():
            found = losses(gates.run(lambda: net(batch_for(net, x))))
            names = list(gates.gates)
            rows = []
            for number, loss in enumerate(found):
                parts = torch.autograd.grad(
                    loss.sum(), [gates.gates[n] for n in names], retain_graph=number + 1 < len(found), allow_unused=True
                )
                zeros = {n: torch.zeros_like(gates.gates[n]) for n in names}
                rows.append(
                    gates.by_unit(
                        {n: zeros[n] if p is None else p for n, p in zip(names, parts, strict=True)}, table.units
                    )
                )
    except NotPerExample:
        rows = _one_by_one(net, table, x, losses)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
    counts = [group.channels for group in table]
    return [dict(zip(table.names, row.split(counts, 1), strict=True)) for row in rows]


def _one_by_one(net: nn.Module, table: ChannelTable, x: Tensor, losses: Losses) -> list[Tensor]:
    """The same by one backward pass per example and loss, for readers of every kind."""
    gates = GateMap(table)
    tensors = {name: t.detach() for name, t in (*net.named_parameters(), *net.named_buffers())}
    with torch.no_grad():
        whole = main_output(net(x))
        count = len(losses(whole))
    rows: list[list[Tensor]] = [[] for _ in range(count)]
    for example in range(len(x)):
        factors = {g.name: x.new_ones(g.channels).requires_grad_() for g in table}
        with torch.enable_grad():
            output = call_with(net, gates.apply(tensors, factors), (x[example : example + 1],))
            # The losses of the whole batch are known by row, so that drawn labels are the same ones.
            found = losses(_in_row(main_output(output), example, whole))
            for number, loss in enumerate(found):
                parts = torch.autograd.grad(
                    loss[example], list(factors.values()), retain_graph=number + 1 < len(found), allow_unused=True
                )
                flat = [torch.zeros_like(f) if p is None else p for f, p in zip(factors.values(), parts, strict=True)]
                rows[number].append(torch.cat(flat))
    return [torch.stack(row) for row in rows]


def _in_row(output: Tensor, row: int, whole: Tensor) -> Tensor:
    """The outputs of the batch with this one, of which there are gradients, in its row."""
    return torch.cat([whole[:row], output, whole[row + 1 :]])


def _target(density: Any, y: Tensor | None) -> Tensor:
    """Of a random score; where the scale of the targets is that of residuals, it is that of the residuals of `y`."""
    if isinstance(density, ProfiledNormal):
        if y is None:
            raise ConfigError("a noise scale that is that of the residuals needs batches of inputs with targets")
        return density.beside(y)
    return random_target(density)


@dataclass(frozen=True)
class GateFisher:
    """Fisher information of the gates of a network.

    Attributes:
        diagonal: `{group: [channels]}`, F_c: N times the mean squared gradient, in nats.
        blocks: `{group: [channels, channels]}`, N times the mean outer product of a group's gradients, if asked for.
        softened: `{group: [channels, channels]}` as `blocks`, with labels of the softened outputs, if asked for. They
            rank channels (:func:`~pyrobnn.criteria.together.lost_together`); their unit is not nats.
        data_size: N.
        examples: images that were looked at.
    """

    diagonal: dict[str, Tensor]
    blocks: dict[str, Tensor] | None
    softened: dict[str, Tensor] | None
    data_size: int
    examples: int


def gate_fisher(
    net: nn.Module,
    table: ChannelTable,
    batches: Iterable[Tensor | tuple[Tensor, Tensor]],
    *,
    data_size: int,
    labels: str = "model",
    draws: int = 1,
    temperature: float | None = None,
    blocks: bool = False,
    likelihood: Likelihood | None = None,
    seed: int = 0,
) -> GateFisher:
    """Fisher information of every channel's gate at 1, network in evaluation mode.

    Processes that share a run take turns with the batches. Each batch is looked at before the next is asked for: what gives
    them may set other weights for each.

    Args:
        net: a trained network; its mode and gradients are left as they were.
        table: its channel table.
        batches: images, or images with labels, on the network's device.
        data_size: N, the examples that the likelihood counts.
        labels: `"model"` takes those of the network's own predictive distribution (the Fisher information; estimated as
            :mod:`~pyrobnn.inference.scores` says), `"data"` those of the batches (the empirical Fisher: what group
            Fisher pruning, Liu et al. 2021, squares).
        draws: random scores per image; they cost a backward pass each.
        temperature: also with labels from softmax(f / T), for `softened`; classes only.
        blocks: also the outer products within each group.
        likelihood: of the targets (class labels by default).
        seed: of the scores; the global random state is not touched.

    Raises:
        ConfigError: labels of another kind, fewer than one draw, no images, a temperature that is not positive, or one
            without classes.
    """
    likelihood = Categorical() if likelihood is None else likelihood

    def density(said: Any) -> Any:
        return likelihood(main_output(said) if isinstance(likelihood, OF_TENSORS) else said)

    if labels not in ("model", "data"):
        raise ConfigError(f"labels of a Fisher information come from 'model' or 'data', got {labels!r}")
    if draws < 1:
        raise ConfigError(f"expected at least one draw per image, got {draws}")
    if temperature is not None and not (temperature > 0 and isinstance(likelihood, Categorical)):
        raise ConfigError(f"a temperature of labels is positive and needs classes, got {temperature:g}")
    diagonal = {g.name: torch.zeros(g.channels, dtype=torch.float64) for g in table}
    outer, softened = (
        {g.name: torch.zeros(g.channels, g.channels, dtype=torch.float64) for g in table} if asked else {}
        for asked in (blocks, temperature is not None)
    )
    draws = draws if labels == "model" else 1
    seen, processes = 0, current()
    device = next((t.device for t in (*net.parameters(), *net.buffers())), torch.device("cpu"))
    with eval_mode(net), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for place, batch in enumerate(batches):
            x, y = batch if isinstance(batch, tuple | list) else (batch, None)
            if labels == "data" and y is None:
                raise ConfigError("labels='data' needs batches of images with labels")
            if place % processes.size != processes.rank:
                seen += len(x)
                continue
            with torch.no_grad():
                output = net(batch_for(net, x))
                if not bool(torch.isfinite(main_output(output)).all()):
                    raise NumericalError(
                        "the network returns NaN or infinity: its weights are too large, or it did not converge"
                    )
                torch.manual_seed(seed + seen)
                here = density(output)
                exact = [_target(here, y) for _ in range(draws)] if labels == "model" else [y]
                soft = []
                if temperature is not None:
                    softer = likelihood(main_output(output) / temperature)
                    soft = [random_target(softer, here) for _ in range(draws)]

            def losses(out: Any, targets: list[Any] = [*exact, *soft]) -> list[Tensor]:  # noqa: B006
                there = density(out)
                return [score(there, target) for target in targets]

            gradients = gate_gradients(net, table, x, losses)
            for number, found in enumerate(gradients):
                products = outer if number < len(exact) else softened
                for name, g in found.items():
                    g = g.double().cpu()
                    if number < len(exact):
                        diagonal[name] += g.square().sum(0)
                    if name in products:
                        products[name] += g.T @ g
            seen += len(x)
    if not seen:
        raise ConfigError("a Fisher information needs at least one image")
    processes.sum(*diagonal.values(), *softened.values(), *outer.values())
    factor = data_size / (seen * draws)
    return GateFisher(
        diagonal={name: value * factor for name, value in diagonal.items()},
        blocks={name: value * factor for name, value in outer.items()} if blocks else None,
        softened=None if temperature is None else {name: value * factor for name, value in softened.items()},
        data_size=data_size,
        examples=seen,
    )
