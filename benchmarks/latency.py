"""How much faster compact networks are: eager, compiled and in ONNX Runtime, and whether a target in milliseconds is met.

VGG-16 and ResNet-56 (32 x 32) at the widths of runs in `results/`, with random weights, one CPU thread, one image and 64
of them. Dense and compact take turns pass by pass; the clock is the thread's own, so other processes do not count but
for the caches they share. Medians; `speed` is the ratio of the dense time to the compact one.

    python benchmarks/latency.py [--networks vgg16,resnet56] [--kinds eager,onnx,targets,profile,compiled]

What is in `results/latency.json` is not measured again: delete an entry for that.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.channels import PruningPlan
from pyrobnn.channels.planner import Limits
from pyrobnn.channels.timing import preferred_multiple, timed_calls
from pyrobnn.metrics.latency import relative_latency, stopwatch
from pyrobnn.report.report import versions

HERE = Path(__file__).parent / "results"
RESULT = HERE / "latency.json"
RUNS = {"vgg16": "ard-vgg16-cifar10-m16-s0", "resnet56": "ard-resnet56-cifar10-m50-muon-s0"}
KINDS = ("eager", "onnx", "targets", "profile", "compiled")
BATCHES = (1, 64)
Call = Callable[[], Any]


def networks(name: str) -> dict[str, nn.Module]:
    """The dense network and one of the widths of a run."""
    torch.manual_seed(0)
    net = pb.nets.build(name, in_channels=3, image_size=32).eval()
    table = pb.channel_groups(net, torch.zeros(2, 3, 32, 32), try_cut=False)
    widths = json.loads((HERE / f"{RUNS[name]}.json").read_text())["compact"]["widths"]
    plan = PruningPlan({group: list(range(width)) for group, width in widths.items()}, table.widths())
    return {"dense": net, "compact": pb.compact(net, plan, None, groups=table).eval()}


def in_turn(calls: dict[str, Call], seconds: float = 4.0, least: int = 7) -> dict[str, Any]:
    """Median milliseconds of each, and the ratio of the first to the second."""
    clock, spent = stopwatch(torch.device("cpu")), 0.0
    times: dict[str, list[float]] = {name: [] for name in calls}
    while spent < seconds or len(times["dense"]) < least + 2:
        for name, call in calls.items():
            start = clock()
            call()
            times[name].append(clock() - start)
            spent += times[name][-1]
    found: dict[str, Any] = {name: round(1e3 * median(taken[2:]), 4) for name, taken in times.items()}
    return {**found, "speed": round(found["dense"] / found["compact"], 3), "rounds": len(times["dense"]) - 2}


def eager(nets: dict[str, nn.Module], x: Tensor, precision: str) -> dict[str, Call]:
    """Torch, in the layout in which convolutions on CPUs are fast."""
    x = x.contiguous(memory_format=torch.channels_last)

    def call(net: nn.Module) -> Call:
        net = net.to(memory_format=torch.channels_last)

        def run() -> Tensor:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, precision == "bf16"):
                found: Tensor = net(x)
                return found

        return run

    return {name: call(net) for name, net in nets.items()}


def compiled(nets: dict[str, nn.Module], x: Tensor, precision: str) -> dict[str, Call]:
    """The same through `torch.compile`."""
    torch.compiler.reset()
    return eager({name: torch.compile(net, dynamic=False) for name, net in nets.items()}, x, precision)  # type: ignore[misc]


def onnx(nets: dict[str, nn.Module], x: Tensor, precision: str) -> dict[str, Call]:
    """ONNX Runtime, which folds normalisations into the convolutions before them; fp32 only on CPUs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    calls = {}
    for name, net in nets.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "net.onnx"
            pb.export(net.to(memory_format=torch.contiguous_format), x, path)
            session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        given = {session.get_inputs()[0].name: x.numpy()}
        calls[name] = lambda session=session, given=given: session.run(None, given)
    return calls


def targets(name: str) -> list[dict[str, Any]]:
    """Plans to a share of the latency from random scores, and what is left when both networks are timed in turn."""
    net, x = networks(name)["dense"], torch.randn(2, 3, 32, 32)
    table = pb.time_layers(net, pb.channel_groups(net, x, try_cut=False), x)
    multiple, rows = preferred_multiple(net, x), list[dict[str, Any]]()
    for seed in range(3):
        torch.manual_seed(seed)
        nats = {g.name: torch.rand(g.channels) * g.cost.latency * (0.5 + torch.rand(1)) for g in table}
        for target, round_to in ((0.5, None), (0.5, multiple), (0.3, multiple)):
            try:
                plan = pb.plan_for_budget(nats, table, target_latency=target, limits=Limits(round_to=round_to))
            except pb.PlanError as error:
                rows.append({"target": target, "round_to": round_to, "seed": seed, "refused": str(error)})
                continue
            small = pb.compact(net, plan, None, groups=table)
            shares = [relative_latency(small, net, x[:1]) for _ in range(3)]
            cost = table.after(plan).cost(None)
            rows.append(
                {
                    "target": target,
                    "round_to": round_to,
                    "seed": seed,
                    "planned": round(cost.latency / table.cost(None).latency, 4),
                    "macs": round(cost.macs / table.cost(None).macs, 4),
                    "measured": round(median(shares), 4),
                }
            )
            print(name, rows[-1], flush=True)
    return rows


def profile(name: str, batch: int = 64) -> dict[str, Any]:
    """Milliseconds by kind of operation, and how fast convolutions compute: why speed is not the ratio of the MACs."""
    x = torch.randn(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    found: dict[str, Any] = {"batch": batch}
    for which, net in networks(name).items():
        calls, _ = timed_calls(net.to(memory_format=torch.channels_last), (x,))
        times: dict[str, float] = defaultdict(float)
        for call in calls:
            times[call.name] += call.milliseconds
        found[which] = {kind: round(ms, 2) for kind, ms in sorted(times.items(), key=lambda row: -row[1])[:5]}
        macs = pb.channel_groups(net, x[:2], try_cut=False).cost(None).macs * batch
        found[which]["GMAC/s"] = round(macs / 1e6 / (times["conv2d"] + times["linear"]), 1)
    print(name, found, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(RUNS))
    parser.add_argument("--kinds", default=",".join(KINDS))
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    found: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}

    def keep(name: str, key: str, value: Any) -> None:
        found.setdefault(name, {"run": RUNS[name]})[key] = value
        found["versions"] = versions()
        RESULT.write_text(json.dumps(found, indent=2) + "\n")

    makers = {"eager": eager, "compiled": compiled, "onnx": onnx}
    alone = {"targets": targets, "profile": profile}
    for kind in args.kinds.split(","):
        for name in args.networks.split(","):
            if kind in alone and kind not in found.get(name, {}):
                keep(name, kind, alone[kind](name))
            for precision in ("fp32", "bf16") if kind in ("eager", "compiled") else ("fp32",) * (kind == "onnx"):
                for batch in BATCHES:
                    key = f"{kind} {precision} batch {batch}"
                    if key in found.get(name, {}):
                        continue
                    torch.manual_seed(0)
                    row = in_turn(makers[kind](networks(name), torch.randn(batch, 3, 32, 32), precision))
                    keep(name, key, {**row, "load": round(os.getloadavg()[0], 1)})
                    print(name, key, found[name][key], flush=True)


if __name__ == "__main__":
    main()
