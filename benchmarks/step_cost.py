"""What a training step costs: plain, stock Pyro, other packages, and ours by estimator, in one run.

LeNet-5 (28 x 28), ResNet-20, ResNet-56 and VGG-16 (32 x 32), batch 128, one CPU thread or one GPU. All kinds take turns
step by step in one process, so that whatever else the machine does falls on all of them; the ratios are medians over
rounds of the ratio to the plain step of the same precision in the same round.

    python benchmarks/step_cost.py --steps 12 [--networks lenet5,resnet20] [--device cpu]

Peers are timed in fp32, where they are installed (`pip install --no-deps bayesian-torch torchbnn ivon-opt tyxe`).
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import pyro
import torch
import torch.nn.functional as F
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.data import Data
from pyrobnn.guides import KernelMeanField, MeanField, NoLatents
from pyrobnn.guides.local import local_params
from pyrobnn.guides.noise import NormalNoise
from pyrobnn.inference.config import FitConfig
from pyrobnn.inference.loop import Loop
from pyrobnn.inference.precision import channels_last
from pyrobnn.inference.terms import Distillation
from pyrobnn.priors.noise import ARDNoise
from pyrobnn.report.report import versions

RESULT = Path(__file__).parent / "results" / "step_cost.json"
SIZES = {"lenet5": (1, 28), "resnet20": (3, 32), "resnet56": (3, 32), "vgg16": (3, 32)}
KINDS = ("tuning", "teacher", "noise", "weight", "local", "moments", "peers")
Kind = Callable[[Tensor, Tensor], None]


def network(name: str) -> nn.Module:
    channels, size = SIZES[name]
    torch.manual_seed(0)
    return channels_last(pb.nets.build(name, in_channels=channels, image_size=size))


def plain(net: nn.Module, dtype: torch.dtype | None, device: torch.device) -> Kind:
    """Forward, cross-entropy, backward, fused Adam."""
    net = net.to(device).train()
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-4, fused=True)

    def step(x: Tensor, y: Tensor) -> None:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype or torch.bfloat16, dtype is not None):
            loss = F.cross_entropy(net(x).float(), y)
        loss.backward()
        optimiser.step()

    return step


def ours(net: nn.Module, prior: Any, guide: Any, data: Data, device: torch.device, **settings: Any) -> Kind:
    """A step of `pb.fit`."""
    terms = settings.pop("terms", ())
    groups = pb.channel_groups(net, data.example) if isinstance(prior, ARDNoise) else None
    model = pb.BayesianModel(net, prior, data_size=len(data.train), groups=groups)
    made = guide(model)
    config = FitConfig(epochs=1000, lr=1e-4, lr_schedule="constant", validate=False, device=str(device), **settings)
    with local_params(model, made):
        loop = Loop(model, made, data, config, terms=terms)

    def step(x: Tensor, y: Tensor) -> None:
        loop.train_step(x, y)
        if loop.step % 8 == 0:  # as the loop does a few times a second
            loop.read()

    return step


def stock(net: nn.Module, dtype: torch.dtype | None, data: Data, device: torch.device) -> Kind:
    """Pyro alone: AutoNormal, Trace_ELBO, weights of convolutions and linear layers random."""
    model = pb.BayesianModel(net, pb.priors.Gaussian("fan_in"), data_size=len(data.train)).to(device)
    model.autocast = dtype
    guide = AutoNormal(model, init_scale=0.01, init_loc_fn=init_to_value(values=model.initial_values()))
    x, y = next(iter(data.train.batches(8, device=device)))
    with local_params(model, guide):
        guide(x, y)
        elbo = Trace_ELBO()(model, guide)
    optimiser = torch.optim.Adam(elbo.parameters(), lr=1e-4, fused=True)

    def step(x: Tensor, y: Tensor) -> None:
        optimiser.zero_grad(set_to_none=True)
        elbo(x, y).backward()
        optimiser.step()

    return step


def peers(name: str, device: torch.device, size: int) -> dict[str, Kind | str]:
    """Steps of other packages in fp32, or why there is none."""
    found: dict[str, Kind | str] = {}

    def variational(convert: Callable[[nn.Module], Any], kl: Callable[[nn.Module], Any]) -> Kind:
        net = network(name)
        net = (convert(net) or net).to(device).train()
        optimiser = torch.optim.Adam(net.parameters(), lr=1e-4, fused=True)

        def step(x: Tensor, y: Tensor) -> None:
            optimiser.zero_grad(set_to_none=True)
            loss = F.cross_entropy(net(x), y) + kl(net) / size
            loss.backward()
            optimiser.step()

        return step

    try:
        convert = importlib.import_module("bayesian_torch.models.dnn_to_bnn")
        for estimator in ("Reparameterization", "Flipout"):
            options = {
                "prior_mu": 0.0, "prior_sigma": 0.1, "posterior_mu_init": 0.0, "posterior_rho_init": -4.0,
                "type": estimator, "moped_enable": False, "moped_delta": 0.5,
            }  # fmt: skip
            found[f"bayesian-torch {estimator}"] = variational(
                lambda net, options=options: convert.dnn_to_bnn(net, options), convert.get_kl_loss
            )
    except Exception as error:
        found["bayesian-torch"] = f"{type(error).__name__}: {error}"
    try:
        torchbnn = importlib.import_module("torchbnn")
        loss = torchbnn.BKLLoss(reduction="sum", last_layer_only=False)

        def layers(net: nn.Module) -> None:
            for module in list(net.modules()):
                for child, old in module.named_children():
                    if isinstance(old, nn.Conv2d) and old.groups == 1:
                        new: nn.Module = torchbnn.BayesConv2d(
                            0.0, 0.1, old.in_channels, old.out_channels, old.kernel_size, old.stride, old.padding,
                            bias=old.bias is not None,
                        )  # fmt: skip
                    elif isinstance(old, nn.Linear):
                        new = torchbnn.BayesLinear(0.0, 0.1, old.in_features, old.out_features)
                    else:
                        continue
                    setattr(module, child, new)

        found["torchbnn"] = variational(layers, loss)
    except Exception as error:
        found["torchbnn"] = f"{type(error).__name__}: {error}"
    try:
        ivon = importlib.import_module("ivon")
        net = network(name).to(device).train()
        optimiser = ivon.IVON(net.parameters(), lr=1e-4, ess=size)

        def step(x: Tensor, y: Tensor) -> None:
            with optimiser.sampled_params(train=True):
                optimiser.zero_grad()
                F.cross_entropy(net(x), y).backward()
            optimiser.step()

        found["ivon-opt"] = step
    except Exception as error:
        found["ivon-opt"] = f"{type(error).__name__}: {error}"
    try:
        tyxe = importlib.import_module("tyxe")
        bnn = tyxe.VariationalBNN(
            network(name).to(device),
            tyxe.priors.IIDPrior(pyro.distributions.Normal(0.0, 0.1), hide_module_types=[nn.BatchNorm2d]),
            tyxe.likelihoods.Categorical(size),
            partial(tyxe.guides.AutoNormal, init_scale=0.01),
        )
        adam = pyro.optim.Adam({"lr": 1e-4})
        found["TyXe"] = lambda x, y: bnn.fit([(x, y)], adam, 1)
    except Exception as error:
        found["TyXe"] = f"{type(error).__name__}: {error}"
    return found


def kinds(name: str, data: Data, device: torch.device, wanted: list[str]) -> dict[str, Kind | str]:
    """The kinds of step for one network beside the plain step and stock Pyro; `bf16` ones under autocast."""
    gaussian = pb.priors.Gaussian("fan_in")
    makers: dict[str, Callable[[dict[str, Any]], Kind]] = {
        "tuning": lambda s: ours(network(name), None, lambda m: NoLatents(), data, device, **s),
        "noise": lambda s: ours(network(name), ARDNoise(), lambda m: NormalNoise(m), data, device, **s),
        "weight": lambda s: ours(network(name), gaussian, lambda m: MeanField(m), data, device, **s),
        "local": lambda s: ours(network(name), gaussian, lambda m: MeanField(m), data, device, estimator="local", **s),
        "moments": lambda s: ours(
            network(name), gaussian, lambda m: KernelMeanField(m), data, device, estimator="moments", **s
        ),
    }
    found: dict[str, Kind | str] = {}
    for precision, dtype in (("fp32", None), ("bf16", torch.bfloat16)):
        found[f"plain {precision}"] = plain(network(name), dtype, device)
        found[f"stock Pyro {precision}"] = stock(network(name), dtype, data, device)
        for kind, make in makers.items():
            if kind in wanted:
                found[f"{kind} {precision}"] = make({"precision": precision})
    if "teacher" in wanted:
        found["tuning with teacher fp32"] = makers["tuning"](
            {"precision": "fp32", "terms": [Distillation(network(name))]}
        )
    return {**found, **(peers(name, device, len(data.train)) if "peers" in wanted else {})}


def timed(step: Kind, x: Tensor, y: Tensor) -> float:
    """Seconds of a step; on a CPU those of its own threads, so that other processes do not count."""
    clock = time.perf_counter if x.is_cuda else time.process_time
    start = clock()
    step(x, y)
    if x.is_cuda:
        torch.cuda.synchronize()
    return clock() - start


def measure(name: str, data: Data, device: torch.device, steps: int, batch: int, wanted: list[str]) -> dict[str, Any]:
    x, y = next(iter(data.train.batches(batch, device=device, channels_last=True)))
    steppers, absent = {}, {}
    for kind, step in kinds(name, data, device, wanted).items():
        if isinstance(step, str):
            absent[kind] = step
            continue
        try:
            for _ in range(2):  # a first step sets up optimisers and kernels
                timed(step, x, y)
            steppers[kind] = step
        except Exception as error:
            absent[kind] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    rounds = [{kind: timed(step, x, y) for kind, step in steppers.items()} for _ in range(steps)]
    rows = {}
    for kind in steppers:
        base = "plain bf16" if kind.endswith("bf16") else "plain fp32"
        rows[kind] = {
            "ms": round(1e3 * median(one[kind] for one in rounds), 2),
            "ratio": round(median(one[kind] / one[base] for one in rounds), 3),
        }
        print(f"{name:9} {kind:32} {rows[kind]['ms']:9.1f} ms  {rows[kind]['ratio']:6.3f}", flush=True)
    return {"steps": rows, "absent": absent}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--networks", default=",".join(SIZES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--kinds", default=",".join(KINDS), help="beside the plain step and stock Pyro")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    pyro.enable_validation(False)
    pyro.settings.set(module_local_params=True)
    device = torch.device(args.device)
    found: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for name in args.networks.split(","):
        data = pb.load_data("mnist" if name == "lenet5" else "cifar10")
        data = replace(data, train=data.train.take(2 * args.batch))
        found[name] = {
            **measure(name, data, device, args.steps, args.batch, args.kinds.split(",")),
            "batch": args.batch, "rounds": args.steps, "threads": torch.get_num_threads(), "device": args.device,
        }  # fmt: skip
        found["versions"] = versions()
        RESULT.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
