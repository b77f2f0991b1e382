"""What a criterion is worth: accuracy right after one cut that it chose, before tuning has made all criteria alike.

Networks: ResNet-20 and VGG-16 with the given weights (CIFAR-10), LeNet-5 trained here (MNIST). The given weights have
seen all training images, so what is chosen or compared with while working on a criterion (the oracle) is measured on
the even test images, and what is reported on the odd ones. Criteria read training images only. One cut to each share
of the MACs, BatchNorm statistics measured again on training images, nothing tuned. The seeds are those of the images
that a criterion reads and BatchNorm is measured on: rows of one seed are pairs.

    python benchmarks/criteria.py [NETWORK [CRITERION]]      # what is missing of results/criteria/, then its summary

`results/criteria/oracle-NETWORK.json` is the loss of every single removal, without the noise of labels: the mean divergence of
the outputs without a unit from those with it; `NETWORK-CRITERION-sSEED.json` a criterion's costs and cuts; `twoway-NETWORK-sSEED.json` widths of one criterion with the channels
of another; `summary.json` means, paired t-tests with Holm's correction, correlations.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rows import HERE, dense, weights
from scipy import stats
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.channels import GateMap
from pyrobnn.channels.planner import plan_for_budget
from pyrobnn.criteria.laplace import laplace_gates, training_images
from pyrobnn.criteria.scores import fpgm_scores, l1_norms, moments_of, norm_scales, taylor_scores
from pyrobnn.inference.curvature import gate_fisher
from pyrobnn.nets import load_weights
from pyrobnn.summary.saliency import removal_cost

RESULTS = HERE / "results" / "criteria"
SHARES = (0.8, 0.6, 0.3, 0.1)
SEEDS = {"resnet20": 5, "vgg16": 3, "lenet5": 5}
NORM_IMAGES, ORACLE_IMAGES, READ_IMAGES = 2000, 250, 2000
PAIRED = ("l1", "taylor", "laplace")  # of the two-way table

Costs = dict[str, Tensor]


class Bench:
    """A network, its data and its table; the halves of the test images."""

    def __init__(self, name: str) -> None:
        self.name = name
        data = pb.load_data("mnist" if name == "lenet5" else "cifar10")
        channels, size, _ = data.image_shape
        self.net = pb.nets.build(name, in_channels=channels, image_size=size)
        path = dense(name, "mnist", 0, 10)[0] if name == "lenet5" else weights(f"{name}_cifar10.safetensors")
        info = load_weights(self.net, path)
        if info.mean is not None and info.std is not None:
            data = data.with_normalisation(info.mean, info.std)
        self.data, self.net = data, self.net.to(memory_format=torch.channels_last).eval()
        self.table = pb.channel_groups(self.net, data.example)
        test = data.test
        self.even, self.odd = (
            replace(test, images=test.images[start::2], labels=test.labels[start::2]) for start in (0, 1)
        )

    @torch.no_grad()
    def outputs(self, net: nn.Module, split: Any) -> tuple[Tensor, Tensor]:
        """Logits and labels."""
        found = [(net(x).float(), y) for x, y in split.batches(500, channels_last=True)]
        return torch.cat([out for out, _ in found]), torch.cat([y for _, y in found])

    def cut(self, plan: pb.PruningPlan, seed: int) -> nn.Module:
        """The compact network with its BatchNorm statistics."""
        small = pb.compact(self.net, plan, None, groups=self.table).to(memory_format=torch.channels_last)
        return pb.reestimate_batchnorm(small, self.data.train, examples=NORM_IMAGES, batch_size=250, seed=seed).eval()

    def measure(self, plan: pb.PruningPlan, seed: int) -> dict[str, Any]:
        """On the odd test images."""
        out, y = self.outputs(self.cut(plan, seed), self.odd)
        if not hasattr(self, "whole"):
            self.whole = self.outputs(self.net, self.odd)[0].argmax(1)
        return {
            "accuracy": 100 * float((out.argmax(1) == y).float().mean()),
            "nll": float(F.cross_entropy(out, y)),
            "agreement": 100 * float((out.argmax(1) == self.whole).float().mean()),
            "widths": plan.widths(),
        }

    @torch.no_grad()
    def oracle(self) -> dict[str, list[float]]:
        """Increase of the expected NLL (labels from the whole network) on even test images without one unit at a time."""
        split = self.even.take(ORACLE_IMAGES)
        x, _ = next(split.batches(ORACLE_IMAGES, channels_last=True))
        gates = GateMap(self.table)
        tensors = {n: t.detach() for n, t in (*self.net.named_parameters(), *self.net.named_buffers())}
        whole = F.log_softmax(self.net(x), -1)
        found = {}
        for group in self.table:
            rows = []
            for unit in range(group.channels):
                factor = torch.ones(group.channels)
                factor[unit] = 0.0
                out = torch.func.functional_call(self.net, gates.apply(tensors, {group.name: factor}), (x,))
                rows.append(float(F.kl_div(F.log_softmax(out, -1), whole, log_target=True, reduction="batchmean")))
            found[group.name] = rows
            print(f"oracle {self.name} {group.name}", flush=True)
        return found


def _relative(bench: Bench, scores: Costs) -> Costs:
    table = bench.table
    return {name: removal_cost(score, table[name], table.facts.shapes) for name, score in scores.items()}


def _batches(bench: Bench, seed: int, images: int = READ_IMAGES) -> Any:
    return training_images(bench.net, bench.data, images, seed)


def _laplace(bench: Bench, seed: int, **options: Any) -> Costs:
    return laplace_gates(
        bench.net, bench.data, bench.table, examples=READ_IMAGES, seed=seed, draws=0, **options
    ).costs()


def _random(bench: Bench, seed: int) -> Costs:
    generator = torch.Generator().manual_seed(seed)
    return _relative(bench, {g.name: torch.rand(g.channels, generator=generator) for g in bench.table})


CRITERIA: dict[str, Callable[[Bench, int], Costs]] = {
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


def correlation(costs: dict[str, list[float]], oracle: dict[str, list[float]]) -> float:
    """Spearman's over all units; costs of shares are only comparable within a group, and are taken as they are spent."""
    names = [name for name in oracle if name in costs]
    ours = np.concatenate([costs[name] for name in names])
    return float(stats.spearmanr(ours, np.concatenate([oracle[name] for name in names])).statistic)


def rows(bench: Bench, criterion: str, seed: int) -> dict[str, Any]:
    start = time.process_time()
    costs = CRITERIA[criterion](bench, seed)
    seconds = time.process_time() - start
    found: dict[str, Any] = {"network": bench.name, "criterion": criterion, "seed": seed, "tuning_epochs": 0}
    found |= {"cpu_seconds": round(seconds, 1), "cuts": {}}
    found["costs"] = {name: [float(f"{v:.4g}") for v in value.tolist()] for name, value in costs.items()}
    for share in SHARES:
        found["cuts"][str(share)] = bench.measure(plan_for_budget(costs, bench.table, target_macs=share), seed)
    return found


def two_way(bench: Bench, seed: int, share: float = 0.6) -> dict[str, Any]:
    """Accuracy with the widths of one criterion and the channels of another."""
    costs = {name: CRITERIA[name](bench, seed) for name in PAIRED}
    widths = {name: plan_for_budget(value, bench.table, target_macs=share).widths() for name, value in costs.items()}
    found: dict[str, Any] = {"network": bench.name, "seed": seed, "share": share, "accuracy": {}}
    for a, b in itertools.product(PAIRED, PAIRED):
        keep = {
            name: sorted(torch.argsort(value, descending=True, stable=True)[: widths[a][name]].tolist())
            for name, value in costs[b].items()
        }
        plan = pb.PruningPlan(keep, {g.name: g.channels for g in bench.table})
        found["accuracy"][f"widths {a}, channels {b}"] = bench.measure(plan, seed)["accuracy"]
    return found


def summary() -> dict[str, Any]:
    """Means over the seeds, and paired t-tests of `laplace` against the others (Holm over the criteria of a table)."""
    table: dict[str, Any] = {}
    for path in sorted(RESULTS.glob("*-s*.json")):
        row = json.loads(path.read_text())
        if "cuts" in row:
            table.setdefault(row["network"], {}).setdefault(row["criterion"], {})[row["seed"]] = row
    found: dict[str, Any] = {}
    for network, criteria in table.items():
        part = found[network] = {}
        oracle = json.loads((RESULTS / f"oracle-{network}.json").read_text())
        for name, by_seed in criteria.items():
            part[name] = {"seeds": len(by_seed)}
            part[name]["rank_correlation"] = float(np.mean([correlation(r["costs"], oracle) for r in by_seed.values()]))
            for share in map(str, SHARES):
                for what in ("accuracy", "nll", "agreement"):
                    values = [r["cuts"][share][what] for r in by_seed.values()]
                    part[name][f"{what} at {share}"] = round(float(np.mean(values)), 3)
        ours = criteria.get("laplace", {})
        for share in map(str, SHARES):
            tests = {}
            for name, by_seed in criteria.items():
                seeds = sorted(ours.keys() & by_seed.keys())
                if name != "laplace" and len(seeds) > 2:
                    pairs = [[r[s]["cuts"][share]["accuracy"] for s in seeds] for r in (ours, by_seed)]
                    tests[name] = float(stats.ttest_rel(*pairs).pvalue)
            for name, value in holm(tests).items():
                part[name][f"p of laplace against it at {share}"] = value
    return found


def holm(pvalues: dict[str, float]) -> dict[str, float]:
    """Holm's step-down correction.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    found, worst = {}, 0.0
    for rank, (name, value) in enumerate(sorted(pvalues.items(), key=lambda item: item[1])):
        worst = max(worst, min(1.0, value * (len(pvalues) - rank)))
        found[name] = worst
    return found


def stored(name: str, make: Callable[[], Any]) -> Any:
    """What a file holds, made first if it is not there."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        print(f"== {name}", flush=True)
        text = json.dumps(make(), indent=1) + "\n"
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(text)
        temporary.replace(path)
    return json.loads(path.read_text())


def main() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    RESULTS.mkdir(parents=True, exist_ok=True)
    network, criterion = [*sys.argv[1:], "", ""][:2]
    for name, seeds in SEEDS.items():
        if network not in ("", name):
            continue
        bench = Bench(name)
        stored(f"oracle-{name}", bench.oracle)
        for seed in range(seeds):
            for key in CRITERIA:
                if criterion in ("", key):
                    stored(f"{name}-{key}-s{seed}", partial(rows, bench, key, seed))
            if criterion == "":
                stored(f"twoway-{name}-s{seed}", partial(two_way, bench, seed))
    Path(RESULTS / "summary.json").write_text(json.dumps(summary(), indent=1) + "\n")


if __name__ == "__main__":
    main()
