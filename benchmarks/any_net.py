"""Every CNN family of timm and torchvision: what can be cut, whether it is exact, and how long the analysis takes.

    python benchmarks/any_net.py [--only NAME ...] [--pixels 64]

Random weights (none zero, so that every channel matters), a random half of every group. `left` is the share of the parameters that remains; `error` the largest
relative difference between mask and compact, in float64 where the network runs in it. Rows that are already in the
result file are kept, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pyrobnn as pb
from pyrobnn.channels.calls import tensors_in
from pyrobnn.report.report import versions

RESULT = Path(__file__).parent / "results" / "any_net.json"
PIXELS = (64, 128, 224, 256)

TIMM = """
resnet18 resnet26t resnext26ts seresnet18 seresnext26t_32x4d ecaresnet26t gcresnet33ts skresnet18 resnest14d
res2net50_26w_4s res2next50 resnetaa34d resnetblur18 resnetrs50 resnetv2_18 resnetv2_50 legacy_seresnet18
wide_resnet50_2 bat_resnext26ts dla34 densenet121 vgg11_bn inception_v3 inception_v4 inception_next_atto
xception41 mobilenetv2_050 mobilenetv3_small_050 mobilenetv4_conv_small_035 mobileone_s0 mobilenet_edgetpu_v2_xs
mnasnet_small semnasnet_075 fbnetc_100 spnasnet_100 tinynet_e efficientnet_b0 efficientnet_lite0
efficientnet_es efficientnetv2_rw_t mixnet_s hardcorenas_a ghostnet_050 ghostnetv2_100 lcnet_035 repvgg_a0
repghostnet_050 regnetx_002 regnety_002 regnetz_b16 nf_regnet_b0 nf_resnet26 eca_nfnet_l0 dm_nfnet_f0 convnext_atto
convnextv2_atto cspresnet50 cs3darknet_s darknet17 ese_vovnet19b_slim_dw selecsls42 hrnet_w18_small rexnet_100 dpn48b
gernet_s hgnet_tiny hgnetv2_b0 tresnet_m rdnet_tiny starnet_s1 fasternet_t0 repvit_m0_9
"""
TORCHVISION = """
alexnet vgg11_bn resnet18 resnext50_32x4d wide_resnet50_2 densenet121 googlenet inception_v3 mobilenet_v2
mobilenet_v3_small shufflenet_v2_x0_5 squeezenet1_1 mnasnet0_5 efficientnet_b0 efficientnet_v2_s regnet_y_400mf
convnext_tiny
"""


def build(name: str) -> nn.Module | None:
    """A network with random weights; None if this version of the library does not have it."""
    library, _, model = name.partition("/")
    if library == "timm":
        import timm

        return timm.create_model(model, pretrained=False) if timm.is_model(model) else None
    import torchvision

    quiet = {"init_weights": False} if model in ("googlenet", "inception_v3") else {}
    made: nn.Module = getattr(torchvision.models, model)(weights=None, **quiet)
    return made


@torch.no_grad()
def randomise(net: nn.Module) -> None:
    """Scales, shifts and statistics that matter: many a network starts with branches that are multiplied by zero."""
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        if name.endswith("running_var") or (tensor.dim() == 1 and bool((tensor == 1).all())):
            tensor.uniform_(0.5, 1.5)
        elif bool((tensor == tensor.reshape(-1)[0]).all()):  # zeros, and small constants such as those of layer scale
            tensor.normal_(0, 0.3)


def example(net: nn.Module, sizes: tuple[int, ...]) -> torch.Tensor:
    """The smallest square that the network takes, in eval and in train mode."""
    for size in sizes:
        x = torch.randn(2, 3, size, size)
        try:
            with torch.no_grad():
                net.train()(x)
                net.eval()(x)
            return x
        except Exception:  # whatever the network says of such small pictures
            continue
    raise RuntimeError(f"no size of {sizes} fits")


def row(name: str, sizes: tuple[int, ...]) -> dict[str, Any]:
    """One network: its table, a cut of a random half of every group, and the comparison."""
    torch.manual_seed(0)
    net = build(name)
    if net is None:
        return {"skipped": "not in this version"}
    x = example(net, sizes)
    randomise(net)
    dense = sum(p.numel() for p in net.parameters())
    start = time.process_time()
    table = pb.channel_groups(net, x)
    seconds = time.process_time() - start
    generator = torch.Generator().manual_seed(0)
    keep = {g.name: torch.randperm(g.channels, generator=generator)[: max(1, g.channels // 2)].tolist() for g in table}
    plan = pb.PruningPlan(keep, table.widths())
    small = pb.compact(net, plan, None, table)
    left = sum(p.numel() for p in small.parameters())
    masked = pb.mask(net, plan, None, table)
    error = _error(masked.double().eval(), small.double().eval(), x.double())
    if error is None:
        error = _error(masked.float().eval(), small.float().eval(), x)
    reasons: dict[str, int] = {}
    for reason in table.refused.values():
        reasons[reason] = reasons.get(reason, 0) + 1
    return {
        "pixels": x.shape[-1],
        "params": dense,
        "groups": len(table),
        "left": round(left / dense, 4),
        "error": error,
        "seconds": round(seconds, 2),
        "refused": dict(sorted(reasons.items(), key=lambda pair: -pair[1])[:6]),
    }


@torch.no_grad()
def _error(masked: nn.Module, small: nn.Module, x: torch.Tensor) -> float | None:
    try:
        first, second = list(tensors_in(masked(x.clone()))), list(tensors_in(small(x.clone())))
    except RuntimeError:
        return None
    return max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-12)) for a, b in zip(first, second, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="names, such as timm/resnet18")
    parser.add_argument("--pixels", type=int, nargs="*", default=list(PIXELS))
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    names = args.only or [f"timm/{name}" for name in TIMM.split()] + [
        f"torchvision/{name}" for name in TORCHVISION.split()
    ]
    found = json.loads(RESULT.read_text()) if RESULT.exists() else {"rows": {}}
    for name in names:
        if name in found["rows"] and not args.only:
            continue
        try:
            found["rows"][name] = row(name, tuple(args.pixels))
        except Exception as error:  # one network must not end the walk
            found["rows"][name] = {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
        print(name, found["rows"][name], flush=True)
        rows = [r for key, r in found["rows"].items() if key.startswith("timm/") and "skipped" not in r]
        done = [r for r in rows if "left" in r]
        found["summary"] = {
            "timm families": len(rows),
            "wrong": sum(r["error"] is None or r["error"] > 1e-4 for r in done) + len(rows) - len(done),
            "at most 0.45 left": sum(r["left"] <= 0.45 for r in done),
            "seconds": round(sum(r["seconds"] for r in done), 1),
        }
        found["versions"] = versions()
        RESULT.write_text(json.dumps(found, indent=1) + "\n")
    print(found["summary"])


if __name__ == "__main__":
    main()
