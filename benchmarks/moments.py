"""What moment propagation and local reparameterisation cost, against the deterministic step.

For LeNet-5 and ResNet-20, batch 128, fp32, one variance per weight and one per filter: seconds of one
training step (forward, backward) and of one inference, deterministic, with sampled weights, locally
reparameterised, and moment-propagating. Steps are interleaved and the median of the CPU time is taken, so
that other work on the machine weighs on all alike. Writes benchmarks/results/moments.json.

    python benchmarks/moments.py [repeats]
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.func import functional_call

from pyrobnn.moments import Moments, second_order_log_likelihood
from pyrobnn.nets import lenet5, resnet20

repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 9
torch.manual_seed(0)
torch.set_num_threads(1)
labels = torch.randint(10, (128,))
rows = []

for name, build, shape in (("lenet5", lenet5, (128, 1, 28, 28)), ("resnet20", resnet20, (128, 3, 32, 32))):
    for layout in ("contiguous", "channels_last"):
        for spread in ("per weight", "per filter"):
            memory = torch.channels_last if layout == "channels_last" else torch.contiguous_format
            net = build().to(memory_format=memory)
            x = torch.randn(shape).to(memory_format=memory)
            loc = {n: p for n, p in net.named_parameters() if p.dim() > 1}
            rho = {
                n: torch.full_like(p if spread == "per weight" else p.flatten(1)[:, 0], -6.0).requires_grad_()
                for n, p in loc.items()
            }

            def std(n: str, loc: dict = loc, rho: dict = rho) -> torch.Tensor:
                return rho[n].exp().view(-1, *[1] * (loc[n].dim() - 1)) if rho[n].dim() == 1 else rho[n].exp()

            def weights(mode: str, loc: dict = loc) -> dict:
                if mode == "sampled":
                    return {n: p + std(n) * torch.randn_like(p) for n, p in loc.items()}
                return {n: Moments.weight(p, std(n).square(), mode, name=n) for n, p in loc.items()}

            def run(mode: str, train: bool, net: torch.nn.Module = net, x: torch.Tensor = x) -> None:
                net.train(train)
                with torch.set_grad_enabled(train):
                    out = functional_call(net, {} if mode == "deterministic" else weights(mode), (x,))
                    if isinstance(out, Moments):
                        loss = -second_order_log_likelihood(out.loc, out.variance, labels).mean()
                    else:
                        loss = F.cross_entropy(out, labels)
                if train:
                    net.zero_grad()
                    loss.backward()

            for phase in ("step", "inference"):
                modes = ("deterministic", "sampled", "local", "moments")
                seconds: dict[str, list[float]] = {mode: [] for mode in modes}
                for repeat in range(repeats + 1):
                    for mode in modes:
                        start = time.process_time()
                        run(mode, phase == "step")
                        if repeat:  # the first round warms up
                            seconds[mode].append(time.process_time() - start)
                medians = {mode: statistics.median(t) for mode, t in seconds.items()}
                ratios = {mode: round(t / medians["deterministic"], 2) for mode, t in medians.items()}
                rows.append(
                    {
                        "net": name,
                        "layout": layout,
                        "variance": spread,
                        "phase": phase,
                        "seconds": {mode: round(t, 4) for mode, t in medians.items()},
                        "ratio": ratios,
                    }
                )
                print(name, layout, spread, phase, ratios, flush=True)

result = {
    "batch": 128,
    "repeats": repeats,
    "threads": 1,
    "time": "median CPU seconds",
    "versions": {"python": platform.python_version(), "torch": torch.__version__},
    "machine": platform.machine(),
    "rows": rows,
}
path = Path(__file__).parent / "results" / "moments.json"
path.parent.mkdir(exist_ok=True)
path.write_text(json.dumps(result, indent=1) + "\n")
