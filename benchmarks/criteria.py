"""What a criterion is worth: accuracy right after one cut that it chose, before tuning has made all criteria alike.

Networks and images: see `criteria_bench.py`. Criteria read training images only. One cut to each share of the MACs,
BatchNorm statistics measured again on training images. The seeds are those of the images that a criterion, its inference
and the tuning see: rows of one seed are pairs.

    python benchmarks/criteria.py [NETWORK [PART]]      # the cells that are missing and whose name holds PART, then the summary

Cells, one file each in `results/criteria/`, in this order:

- `oracle-NETWORK`: the loss of every single removal;
- `NETWORK-CRITERION-sSEED`: costs of all channels, and the cuts. Criteria that infer (one epoch, one round, see
  `criteria_fits.py`) have their cuts twice: of the network that inference has left (`cuts`), and of the given one
  (`given_cuts`), where only the choice of channels differs from the others;
- `NETWORK-CRITERION-tuneEPOCHS-mSHARE-sSEED`: the given network, cut and tuned;
- `twoway-NETWORK-sSEED`: the widths of one criterion with the channels of another, at 60 %.

`summary.json`: means, paired t-tests with Holm's correction, correlations (`criteria_summary.py`).
"""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from criteria_bench import SEEDS, Bench
from criteria_fits import Costs, infer, tune
from criteria_summary import PAIRED, RESULTS, SHARES, read, summary
from torch import Tensor

import pyrobnn as pb
from pyrobnn.channels.planner import plan_for_budget
from pyrobnn.criteria.laplace import laplace_gates, training_images
from pyrobnn.criteria.scores import fpgm_scores, l1_norms, moments_of, norm_scales, taylor_scores
from pyrobnn.inference.curvature import gate_fisher
from pyrobnn.io.files import write_text
from pyrobnn.summary.saliency import share_of_group

READ_IMAGES = 2000
INFERRED = ("ard", "ss-gl", "gaussian", "turbo-vbi", "sbp", "bayes-l1", "self-compression")
FEW = (
    "laplace",
    "l1",
    "taylor",
    "group-fisher",
    "ard",
    "ss-gl",
)  # those that are tuned for long, and have a two-way table


def _relative(bench: Bench, scores: Costs) -> Costs:
    table = bench.table
    return {name: share_of_group(score, table[name], table.facts.shapes) for name, score in scores.items()}


def _batches(bench: Bench, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    return training_images(bench.net, bench.data, READ_IMAGES, seed)


def _laplace(bench: Bench, seed: int, **options: Any) -> Costs:
    return laplace_gates(
        bench.net, bench.data, bench.table, examples=READ_IMAGES, seed=seed, draws=0, **options
    ).costs()


def _random(bench: Bench, seed: int) -> Costs:
    generator = torch.Generator().manual_seed(seed)
    return _relative(bench, {g.name: torch.rand(g.channels, generator=generator) for g in bench.table})


PLAIN: dict[str, Callable[[Bench, int], Costs]] = {
    "laplace": _laplace,
    "l1": lambda b, s: _relative(b, l1_norms(b.table, moments_of(b.net))),
    "taylor": lambda b, s: _relative(b, taylor_scores(b.net, b.table, _batches(b, s))),
    "group-fisher": lambda b, s: (
        gate_fisher(b.net, b.table, _batches(b, s), data_size=len(b.data.train), labels="data").diagonal
    ),
    "laplace-nats": lambda b, s: _laplace(b, s, temperature=None),
    "laplace-block": lambda b, s: _laplace(b, s, temperature=None, curvature="block"),
    "bn-scale": lambda b, s: _relative(b, norm_scales(b.net, b.table)),
    "fpgm": lambda b, s: _relative(b, fpgm_scores(b.net, b.table)),
    "random": _random,
}


def cuts(bench: Bench, costs: Costs, seed: int, net: torch.nn.Module | None = None) -> dict[str, Any]:
    """Figures of the cut to each share."""
    found = {}
    for share in SHARES:
        plan = plan_for_budget(costs, bench.table, target_macs=share)
        found[str(share)] = {**bench.measure(bench.cut(plan, seed, net)), "widths": plan.widths()}
    return found


def chosen(bench: Bench, criterion: str, seed: int) -> dict[str, Any]:
    """A cell without tuning."""
    start = time.process_time()
    fitted = infer(bench, criterion, seed) if criterion in INFERRED else None
    costs = PLAIN[criterion](bench, seed) if fitted is None else fitted.costs
    found: dict[str, Any] = {"network": bench.name, "criterion": criterion, "seed": seed, "tuning_epochs": 0}
    found["cpu_seconds"] = round(time.process_time() - start, 1)
    found["costs"] = {name: [float(f"{v:.4g}") for v in value.tolist()] for name, value in costs.items()}
    if fitted is not None:
        found["moved"] = fitted.moved
        found["cuts"], found["given_cuts"] = cuts(bench, costs, seed, fitted.net), cuts(bench, costs, seed)
    else:
        found["cuts"] = cuts(bench, costs, seed)
    return found


def costs_of(network: str, criterion: str, seed: int) -> Costs | None:
    """Costs of the channels that a finished cell holds."""
    cell = read(f"{network}-{criterion}-s{seed}")
    return None if cell is None else {name: torch.tensor(value) for name, value in cell["costs"].items()}


def tuned(bench: Bench, criterion: str, seed: int, share: float, epochs: float) -> dict[str, Any] | None:
    """A cell with tuning; None while its criterion has no costs."""
    costs = costs_of(bench.name, criterion, seed)
    if costs is None:
        return None
    plan = plan_for_budget(costs, bench.table, target_macs=share)
    start = time.process_time()
    net = tune(bench, bench.cut(plan, seed), epochs, seed)
    return {
        "network": bench.name,
        "criterion": criterion,
        "seed": seed,
        "tuning_epochs": epochs,
        "share": share,
        "cpu_seconds": round(time.process_time() - start, 1),
        **bench.measure(net),
        "widths": plan.widths(),
    }


def two_way(bench: Bench, seed: int, share: float = 0.6) -> dict[str, Any]:
    """Accuracy of the given network with the widths of one criterion and the channels of another."""
    every = {name: costs_of(bench.name, name, seed) for name in PAIRED}
    costs = {name: value for name, value in every.items() if value is not None}
    widths = {name: plan_for_budget(value, bench.table, target_macs=share).widths() for name, value in costs.items()}
    found = read(f"twoway-{bench.name}-s{seed}") or {
        "network": bench.name,
        "seed": seed,
        "share": share,
        "accuracy": {},
    }
    for a, b in itertools.product(costs, costs):
        if (key := f"widths {a}, channels {b}") not in found["accuracy"]:
            keep = {
                name: sorted(torch.argsort(value, descending=True, stable=True)[: widths[a][name]].tolist())
                for name, value in costs[b].items()
            }
            plan = pb.PruningPlan(keep, {g.name: g.channels for g in bench.table})
            found["accuracy"][key] = bench.measure(bench.cut(plan, seed))["accuracy"]
    return found


Cell = tuple[str, Callable[[Bench], Any]]


def cells(network: str) -> Iterator[Cell]:
    """Names of all cells of a network and how each is made, the cheap and decisive ones first."""
    seeds = range(SEEDS[network])
    yield f"oracle-{network}", lambda bench: bench.oracle()
    for seed, name in itertools.product(seeds, PLAIN):
        yield f"{network}-{name}-s{seed}", partial(chosen, criterion=name, seed=seed)
    for names in (INFERRED[:4], INFERRED[4:]):
        for seed, name in itertools.product(seeds, names):
            yield f"{network}-{name}-s{seed}", partial(chosen, criterion=name, seed=seed)
            if (name, names) == (names[-1], INFERRED[:4]):
                yield f"twoway-{network}-s{seed}", partial(two_way, seed=seed)
    short = [(FEW, 0.3), (FEW, 0.6), (FEW, 0.1)]
    rest = tuple(name for name in (*PLAIN, *INFERRED) if name not in FEW)
    for some, share in (*short, *((rest, share) for _, share in short)):
        yield from _tuned(network, some, share, 0.5)
    for epochs, share in ((2.0, 0.3), (8.0, 0.3), (8.0, 0.1)):
        yield from _tuned(network, FEW, share, epochs)


def _tuned(network: str, names: tuple[str, ...], share: float, epochs: float) -> Iterator[Cell]:
    for seed, name in itertools.product(range(SEEDS[network]), names):
        cell = f"{network}-{name}-tune{epochs:g}-m{100 * share:g}-s{seed}"
        yield cell, partial(tuned, criterion=name, seed=seed, share=share, epochs=epochs)


def whole(name: str) -> bool:
    """Whether a cell is finished; a two-way table grows with the criteria that there are costs of."""
    cell = read(name)
    return cell is not None and (not name.startswith("twoway") or len(cell["accuracy"]) == len(PAIRED) ** 2)


def write(name: str, cell: Any) -> None:
    """The cell's file, whole or not at all; a list of numbers is one line."""
    lines = re.sub(r"\[[^\[\]{}\"]+\]", lambda found: " ".join(found[0].split()), json.dumps(cell, indent=1))
    write_text(RESULTS / f"{name}.json", lines + "\n")


def main() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    RESULTS.mkdir(parents=True, exist_ok=True)
    network, part = [*sys.argv[1:], "", ""][:2]
    for name in SEEDS:
        missing = [(key, make) for key, make in cells(name) if part in key and not whole(key)]
        if network in ("", name) and missing:
            bench = Bench(name)
            for key, make in missing:
                print(f"== {key}", flush=True)
                cell = make(bench)
                if cell is not None:
                    write(key, cell)
    write("summary", summary())


if __name__ == "__main__":
    main()
