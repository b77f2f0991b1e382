"""One optimiser step on the device, eager or captured: nothing in it is read by the host.

Loss, its parts and correct labels are summed where they are computed, and one flag says whether any step had a loss
or a gradient that is not finite. From such a step on, parameters are not changed, so that the step can be repeated to find what
was wrong (:mod:`pyrobnn.inference.failure`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.inference.config import FitConfig
from pyrobnn.inference.newton import NewtonScales, newton_scales
from pyrobnn.inference.objective import Objective
from pyrobnn.io.processes import current
from pyrobnn.metrics.scores import class_logits

WARM_UP = 3  # eager steps before a capture: libraries choose their kernels in them
SUMMED = ("loss", "nll", "kl", "correct", "good")


@dataclass(frozen=True)
class Sums:
    """What the steps so far add up to.

    Attributes:
        loss, nll, kl: nats, summed over examples.
        correct: examples whose label has the largest output.
        good: steps with a finite loss and gradient.
        failed: whether there was another one.
    """

    loss: float
    nll: float
    kl: float
    correct: float
    good: int
    failed: bool


class Step:
    """Forward, backward, clipping and optimiser.

    Where several processes share a fit, each computes on its part of a batch, the objective is in torch's
    `DistributedDataParallel`, and sums and the flag are those of all.

    Args:
        objective: the loss.
        optimiser: one that takes `grad_scale` and `found_inf` (torch's fused ones and
            :class:`~pyrobnn.inference.muon.Muon` do).
        clip: bound on the norm of the gradient, None for none.
        device: where all of it is.
        newton: steps of parameters that the optimiser does not have.
    """

    def __init__(
        self,
        objective: Objective,
        optimiser: torch.optim.Optimizer,
        clip: float | None,
        device: torch.device,
        newton: NewtonScales | None = None,
    ) -> None:
        self.objective, self.optimiser, self.clip, self.newton = objective, optimiser, clip, newton
        self.processes = current()
        self.evaluate = self.processes.shared(objective)
        wide = torch.float32 if device.type == "mps" else torch.float64
        self.sums = torch.zeros(len(SUMMED), dtype=wide, device=device)
        self.failed = torch.zeros((), device=device)

    def __call__(self, x: Tensor, y: Tensor, view: Tensor | None = None, total: int | None = None) -> None:
        """Change parameters and sums.

        Args:
            x, y: the examples of this process.
            view: which images these are (see `Batch`).
            total: examples of the batch in all processes; by default these.
        """
        self.optimiser.zero_grad(set_to_none=True)
        if self.newton is not None:
            self.newton.zero_grad()
        loss = self.evaluate(x, y, view)
        size, weight = self._share(len(y), len(y) if total is None else total)
        # The mean of gradients over processes is that of the whole batch only if larger parts count more.
        (loss.loss if weight == 1 else weight * loss.loss).backward()
        gradients = [p.grad for group in self.optimiser.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        with torch.no_grad():
            whole = loss.loss.detach() + norm
            if self.newton is not None:
                whole = whole + nn.utils.get_total_norm([p.grad for p in self.newton.parameters if p.grad is not None])
            finite = torch.isfinite(whole).to(self.failed.dtype)
            labels = y.dim() == 1 and not y.is_floating_point()
            correct = (class_logits(loss.output.detach()).argmax(-1) == y).sum() if labels else torch.zeros_like(norm)
            share = size / len(y)  # of these examples: 1, or less where all processes have them
            parts = (size * loss.loss.detach(), size * loss.nll, size * loss.kl, share * correct, 1 - finite)
            found = torch.stack([part.to(self.sums.dtype) for part in parts])
            self.processes.sum(found)
            torch.maximum(self.failed, found[-1].clamp_max(1).to(self.failed.dtype), out=self.failed)
            if self.clip is not None:
                self.optimiser.grad_scale = ((norm + 1e-6) / self.clip).clamp_min(1.0).float()  # type: ignore[attr-defined]
        self.optimiser.found_inf = self.failed  # type: ignore[attr-defined]
        self.optimiser.step()
        if self.newton is not None:
            self.newton.step(self.objective.kl_weight, self.failed)
        with torch.no_grad():
            found[-1] = 1 - self.failed
            self.sums += found

    def _share(self, count: int, total: int) -> tuple[float, float]:
        """What `count` examples are in sums over processes, and what their loss weighs in the mean over processes."""
        if self.processes.alone:
            return count, 1
        if count == total:  # a batch too small to be shared: all processes have it
            return total / self.processes.size, 1
        return count, count * self.processes.size / total

    def set(self, rate: float, kl_weight: float) -> None:
        """What changes between steps: the factor on all learning rates and the weight of the KL."""
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * rate
        self.objective.kl_weight = kl_weight

    def forget(self) -> None:
        """The next step computes another thing than the last one did (terms, settings); a captured one is dropped."""

    def restart(self) -> None:
        """Sums of a new epoch."""
        self.sums.zero_()

    def read(self) -> Sums:
        """Wait for the device and copy the sums to the host."""
        loss, nll, kl, correct, good, failed = torch.cat([self.sums, self.failed.to(self.sums.dtype)[None]]).tolist()
        return Sums(loss, nll, kl, correct, int(good), bool(failed))


class CapturedStep(Step):
    """The same step as one CUDA graph, replayed for every batch of the shape of the first; others run eagerly.

    What changes between steps lives in tensors of the device: rates, the weights of the KL, the settings that callbacks
    move. Warm-up and capture leave parameters, buffers, moments, sums and random states as they were. The draws of a
    replay follow the seed that is set before it, as those of an eager step do.
    """

    def __init__(
        self,
        objective: Objective,
        optimiser: torch.optim.Optimizer,
        clip: float | None,
        device: torch.device,
        newton: NewtonScales | None = None,
    ) -> None:
        super().__init__(objective, optimiser, clip, device, newton)
        for group in optimiser.param_groups:
            group["lr"] = torch.zeros((), device=device)
            if "capturable" in group:
                group["capturable"] = device.type == "cuda"
        objective.kl_weight = torch.ones((), device=device)
        self._replay: Callable[[], None] | None = None
        self._batch: tuple[Tensor | None, ...] = ()
        self._refused = False

    def set(self, rate: float, kl_weight: float) -> None:
        for group in self.optimiser.param_groups:
            group["lr"].fill_(group["peak"] * rate)
        weight = self.objective.kl_weight
        assert isinstance(weight, Tensor)
        weight.fill_(kl_weight)

    def forget(self) -> None:
        self._replay = None

    def __call__(self, x: Tensor, y: Tensor, view: Tensor | None = None, total: int | None = None) -> None:
        if self._replay is None and not self._refused:
            self._capture(x, y, view)
        batch = (x, y, view)
        if self._replay is None or [_form(part) for part in batch] != [_form(part) for part in self._batch]:
            super().__call__(x, y, view)
            return
        for held, part in zip(self._batch, batch, strict=True):
            if held is not None and part is not None:
                held.copy_(part, non_blocking=True)
        self._replay()

    def _capture(self, x: Tensor, y: Tensor, view: Tensor | None) -> None:
        if random := [type(term).__name__ for term in self.objective.terms if not getattr(term, "capturable", True)]:
            self._refuse(f"the term {random[0]} draws numbers on the host")
            return
        self._batch = tuple(None if part is None else part.clone() for part in (x, y, view))
        kept = {id(tensor): (tensor, tensor.clone()) for tensor in self._tensors()}
        try:
            self._replay = self._recorded(lambda: Step.__call__(self, *self._batch))  # type: ignore[arg-type]
        except RuntimeError as error:
            self._refuse(str(error).splitlines()[0])
        with torch.no_grad():
            for tensor in self._tensors():
                if id(tensor) in kept:
                    tensor.copy_(kept[id(tensor)][1])
                else:  # moments of an optimiser that had made no step
                    tensor.zero_()
        self.objective.model.forget_batch()

    def _recorded(self, run: Callable[[], None]) -> Callable[[], None]:
        """Run it a few times and record it; the returned function replays what was recorded."""
        device = self.sums.device
        with torch.random.fork_rng(devices=[device]):
            stream = torch.cuda.Stream(device)
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    self.objective.model.forget_batch()
                    run()
            torch.cuda.current_stream(device).wait_stream(stream)
            self.optimiser.zero_grad(set_to_none=True)
            self.objective.model.forget_batch()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                run()
        return graph.replay

    def _refuse(self, why: str) -> None:
        self._refused, self._replay = True, None
        warnings.warn(f"the step is not captured as a CUDA graph and runs eagerly: {why}", UserWarning, stacklevel=2)

    def _tensors(self) -> list[Tensor]:
        """Everything that a step changes."""
        state = [
            value for entry in self.optimiser.state.values() for value in entry.values() if isinstance(value, Tensor)
        ]
        return [*self.objective.parameters(), *self.objective.buffers(), *state, self.sums, self.failed]


def _form(part: Tensor | None) -> Any:
    return None if part is None else (part.shape, part.stride(), part.dtype)


def new_step(objective: Objective, optimiser: torch.optim.Optimizer, config: FitConfig, device: torch.device) -> Step:
    """A captured step on a CUDA device unless `config.capture` is off, else an eager one, as in several processes."""
    captured = device.type == "cuda" and config.capture == "auto" and current().alone
    kind = CapturedStep if captured else Step
    newton = None
    if config.scale_rate is not None:
        size = objective.model.data_size
        newton = newton_scales(objective.guide, config.scale_rate, size, objective.site_weights)
    return kind(objective, optimiser, config.clip, device, newton)
