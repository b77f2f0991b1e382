"""How the analysis grows with the network: channel groups, cuts, summaries, plans and pictures, ResNet-20 to ResNet-152.

Seconds of the process's own time on one CPU thread. `channel groups` is the reading and the trial of every group;
`real size` is the trial that each network has once on inputs of its real size, which goes apart. The posterior is that of
mean-field Gaussian weights; its memory is in multiples of the network's parameters (fp32).

    python benchmarks/growth.py [--networks resnet20,resnet50]

What is in `results/growth.json` is not measured again: delete an entry for that.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import matplotlib
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.channels.trial import Keep, Trial
from pyrobnn.report.figures import standard_figures
from pyrobnn.report.report import versions

RESULT = Path(__file__).parent / "results" / "growth.json"
SIZES = {"resnet20": 32, "resnet56": 32}
NETWORKS = (
    *(
        "resnet20",
        "resnet56",
        "resnet18",
        "resnet50",
        "densenet201",
        "timm/res2net50_26w_4s",
        "timm/efficientnetv2_rw_t",
    ),
    *("resnet101", "resnet152"),
)
T = TypeVar("T")


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name.startswith("timm/"):
        import timm

        net: nn.Module = timm.create_model(name.removeprefix("timm/"), pretrained=False)
        return net
    if name in SIZES:
        return pb.nets.build(name, in_channels=3, image_size=SIZES[name])
    from torchvision.models import get_model

    found: nn.Module = get_model(name, weights=None)
    return found


class RealSize:
    """Measures the checks of a trial on inputs of the real size, while it is entered."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def _timed(self, do: Callable[[], T]) -> T:
        start = time.process_time()
        try:
            return do()
        finally:
            self.seconds += time.process_time() - start

    def __enter__(self) -> RealSize:
        self.before = before = Trial.whole_checks

        def checks(trial: Trial, net: nn.Module) -> list[Callable[[Keep], str | None]]:
            found = self._timed(lambda: before(trial, net))
            return [lambda keep, check=check: self._timed(lambda: check(keep)) for check in found]

        Trial.whole_checks = checks  # type: ignore[method-assign]
        return self

    def __exit__(self, *error: object) -> None:
        Trial.whole_checks = self.before  # type: ignore[method-assign]


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors of a posterior."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors(part)
    elif dataclasses.is_dataclass(value):
        yield from tensors([getattr(value, field.name) for field in dataclasses.fields(value)])


def elements(found: Iterator[Tensor]) -> int:
    """Numbers in tensors, each storage once."""
    return sum({t.untyped_storage().data_ptr(): t.numel() for t in found}.values())


def measure(name: str) -> dict[str, Any]:
    net = build(name)
    params = sum(p.numel() for p in net.parameters())
    example = torch.randn(2, 3, *(SIZES.get(name, 224),) * 2)
    seconds: dict[str, float] = {}

    def timed(what: str, do: Callable[[], T]) -> T:
        start = time.process_time()
        done = do()
        seconds[what] = round(time.process_time() - start, 3)
        return done

    with RealSize() as real:
        table = timed("channel groups", lambda: pb.channel_groups(net, example))
    seconds["real size"] = round(real.seconds, 3)
    seconds["channel groups"] = round(seconds["channel groups"] - real.seconds, 3)
    torch.manual_seed(0)
    nats = {group.name: torch.rand(group.channels) * group.cost.macs for group in table}
    plan = timed("plan", lambda: pb.plan_for_budget(nats, table, target_macs=0.5))
    small = timed("compact", lambda: pb.compact(net, plan, None, groups=table))
    model = pb.BayesianModel(net, pb.priors.Gaussian("fan_in"), data_size=1000, groups=table)
    guide = pb.guides.MeanField(model)
    posterior = timed("summarize", lambda: pb.summarize(model, guide))
    timed("pictures", lambda: standard_figures(posterior, {}))
    return {
        "params": params,
        "groups": len(table),
        "units": table.units,
        "compact_params": sum(p.numel() for p in small.parameters()),
        "seconds": seconds,
        "memory": {
            "guide": round(sum(p.numel() for p in guide.parameters()) / params, 3),
            "posterior": round(elements(tensors(posterior)) / params, 3),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    matplotlib.use("Agg")
    torch.set_num_threads(1)
    found: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    measure("resnet20")  # what is imported and set up once
    for name in args.networks.split(","):
        if name in found:
            continue
        try:
            found[name] = measure(name)
        except ImportError as error:
            print(name, f"left out: {error}", flush=True)
            continue
        found["versions"] = versions()
        RESULT.write_text(json.dumps(found, indent=2) + "\n")
        print(name, found[name], flush=True)


if __name__ == "__main__":
    main()
