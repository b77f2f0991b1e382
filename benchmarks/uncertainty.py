"""Does a small net still know what it does not know? Five ways to predict, on known and on unknown images.

For each seed: the dense net at its trained weights (MAP), the dense net with a Gaussian weight posterior,
the compact net at its weights, the compact net with its surviving posterior, and a deep ensemble of three
dense nets. Accuracy, NLL and ECE on the test set; AUROC of the predictive entropy against images that are
none of the known classes. Both posteriors are fitted by the same recipe for the same number of epochs; the
compact one is also taught by the dense network (not by its posterior) what to say where there are no data. A
result file per seed, benchmarks/results/uncertainty_<setting>_<seed>.json, is filled row by row, and what
was trained is kept in runs/bench: a stopped call goes on where it was.

    python benchmarks/uncertainty.py [lenet5 | resnet20] [seed]
    python benchmarks/uncertainty.py table
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import torch.nn.functional as F
from rows import RESULTS, RUNS, dense, weights
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.compression.store import read_description
from pyrobnn.data import Data, Split
from pyrobnn.guides import NoLatents
from pyrobnn.inference.recipe import kind_of
from pyrobnn.inference.schedules import OneCycle
from pyrobnn.metrics.evaluate import ood_auroc, predict_logits
from pyrobnn.metrics.scores import PredictiveAccumulator
from pyrobnn.nets import load_weights, save_weights
from pyrobnn.posterior.bayesian_net import settings
from pyrobnn.report.cost import count
from pyrobnn.report.report import versions

MEMBERS = 3


@dataclass(frozen=True)
class Setting:
    """One table: a network, its data, what it is asked for, and the unknown images."""

    net: str
    data: str
    options: dict[str, Any]
    posterior_epochs: int
    member_epochs: int
    unknown: Callable[[Data], dict[str, Split]]
    draws: int = 50
    weights: str | None = None
    dense: int = 0  # epochs of the dense network of each seed, shared with the other benchmarks
    seeds: tuple[int, ...] = (0, 1, 2)
    names: tuple[str, ...] = field(default=("dense MAP", "dense BNN", "compact", "compact BNN", "ensemble of 3"))


def like(data: Data, images: Tensor) -> Split:
    """Unknown images in the normalisation of the known ones; their labels are not used."""
    return replace(data.test, images=images, labels=torch.zeros(len(images), dtype=torch.long))


def resized(images: Tensor, side: int) -> Tensor:
    """uint8 images at another size, bilinear with anti-aliasing."""
    small = F.interpolate(images.float(), (side, side), mode="bilinear", antialias=True, align_corners=False)
    return small.round().clamp(0, 255).to(torch.uint8)


def unknown_to_mnist(data: Data) -> dict[str, Split]:
    """CIFAR-10 in grey (ITU-R 601) at 28x28, and the test digits turned by 90 degrees."""
    colour = pb.load_data("cifar10").test.images.float()
    grey = (colour * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    return {
        "CIFAR-10 grey": like(data, resized(grey, 28)),
        "rotated 90°": like(data, data.test.images.rot90(1, (2, 3))),
    }


def unknown_to_cifar(data: Data) -> dict[str, Split]:
    """MNIST as colour at 32x32."""
    digits = resized(pb.load_data("mnist").test.images, 32)
    return {"MNIST as colour": like(data, digits.expand(-1, 3, -1, -1).contiguous())}


SETTINGS = {
    "lenet5": Setting(
        "lenet5", "mnist", {"method": "ard", "target_macs": 0.10, "epochs": 30}, 10, 10, unknown_to_mnist, dense=10
    ),
    "resnet20": Setting(
        "resnet20",
        "cifar10",
        {"method": "ard", "target_macs": 0.70, "epochs": 18},
        3,
        10,
        unknown_to_cifar,
        draws=10,
        weights="resnet20_cifar10.safetensors",
        seeds=(0,),
    ),
}


class Setup:
    """One seed of one setting: what is trained, each thing once."""

    def __init__(self, setting: Setting, name: str, seed: int) -> None:
        self.setting, self.seed = setting, seed
        self.folder = RUNS / f"uncertainty-{name}-s{seed}"
        self.path = RESULTS / f"uncertainty_{name}_{seed}.json"
        self.result: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {"rows": {}}
        options, self.dense_seconds = dict(setting.options), 0.0  # given weights: not known, not counted
        if setting.weights is not None:
            options["weights"] = weights(setting.weights)
        elif setting.dense:
            options["weights"], training = dense(setting.net, setting.data, seed, setting.dense)
            self.dense_seconds = training["seconds"]
        self.run = pb.compress(
            setting.net,
            setting.data,
            seed=seed,
            out=self.folder,
            resume=self.folder.exists(),
            bayesian_epochs=setting.posterior_epochs,
            **options,
        )
        constants = read_description(self.folder)  # those that given weights were trained with
        self.data = pb.load_data(setting.data).with_normalisation(constants["mean"], constants["std"])
        self.sets = {"test": self.data.test, **setting.unknown(self.data)}

    def save(self) -> None:
        self.result |= {
            "net": self.setting.net,
            "data": self.setting.data,
            "seed": self.seed,
            "options": self.setting.options,
            "posterior_epochs": self.setting.posterior_epochs,
            "member_epochs": self.setting.member_epochs,
            "draws": self.setting.draws,
            "macs_removed": self.run.report["reduction"]["macs"],
            "kl_weight": self.run.report["bayesian"]["kl_weight"],
            "versions": versions(),
        }
        self.path.write_text(json.dumps(self.result, indent=1) + "\n")

    def plain(self, net: nn.Module) -> Callable[[Split], PredictiveAccumulator]:
        """Predictions of one plain network."""
        return self.together([net])

    def together(self, nets: list[nn.Module]) -> Callable[[Split], PredictiveAccumulator]:
        """Mean probabilities of several plain networks."""

        def predict(split: Split) -> PredictiveAccumulator:
            found = PredictiveAccumulator()
            for net in nets:
                found.add_logits(predict_logits(net, split)[0])
            return found

        return predict

    def posterior(self, net: pb.BayesianNet) -> Callable[[Split], PredictiveAccumulator]:
        """Predictions averaged over a weight posterior."""
        return lambda split: net.predict(split, draws=self.setting.draws)

    def dense_posterior(self) -> tuple[pb.BayesianNet, float]:
        """The dense net with a posterior, fitted as the compact one is."""
        path, size = self.folder / "dense-bayesian.pt", len(self.run_data.train)
        if path.exists():
            saved = torch.load(path, weights_only=True)
            return pb.BayesianNet.from_state(self.run.dense, saved["state"], data_size=size), saved["seconds"]
        start = time.perf_counter()
        net = pb.BayesianNet.around(self.run.dense, data_size=size)
        config = pb.FitConfig(
            **{
                **settings(self.run.dense),
                "epochs": self.setting.posterior_epochs,
                "seed": self.seed,
                "validate": False,
            }
        )
        net.fit(self.run_data, config, title="dense BNN")
        seconds = time.perf_counter() - start
        torch.save({"state": net.state(), "seconds": seconds}, path)
        return pb.BayesianNet.from_state(self.run.dense, net.state(), data_size=size), seconds

    @property
    def run_data(self) -> Data:
        """Training images as the run used them: all of them where nothing was chosen on validation images."""

        return self.data if self.run.report["validation_clean"] else self.data.without_validation()

    def members(self) -> Iterator[nn.Module]:
        """The dense net and further ones from other seeds, each trained and saved once."""
        yield self.run.dense
        for k in range(1, MEMBERS):
            path = self.folder / f"member-{k}.safetensors"
            torch.manual_seed(1000 * k + self.seed)
            channels, side, _ = self.data.image_shape
            net = pb.nets.build(
                self.setting.net, num_classes=self.data.num_classes, in_channels=channels, image_size=side
            )
            if not path.exists():
                deep = kind_of(net) == "deep"
                config = pb.FitConfig(
                    epochs=self.setting.member_epochs,
                    optimizer="sgd" if deep else "adam",
                    lr=0.1 if deep else 2e-3,
                    weight_decay=5e-4 if deep else 0.0,
                    lr_schedule=OneCycle(0.3 if deep else 0.2),
                    seed=1000 * k + self.seed,
                    validate=False,
                )
                model = pb.BayesianModel(net, data_size=len(self.run_data.train))
                fitted = pb.fit(model, NoLatents(), self.run_data, config=config, title=f"member {k + 1}")
                save_weights(pb.deterministic_net(fitted.model, fitted.guide), path)
            load_weights(net, path)
            yield net.eval()

    def measure(
        self, name: str, predict: Callable[[Split], PredictiveAccumulator], *, params: int, passes: int, train: float
    ) -> None:
        """One row of the table, written at once."""
        start = time.perf_counter()
        found = {key: predict(split) for key, split in self.sets.items()}
        seconds = (time.perf_counter() - start) / sum(len(split) for split in self.sets.values())
        metrics = found["test"].metrics(self.data.test.labels)
        known = found["test"].predictive_entropy
        self.result["rows"][name] = {
            **metrics.to_dict(),
            "auroc": {k: ood_auroc(known, v.predictive_entropy) for k, v in found.items() if k != "test"},
            "params": params,
            "passes": passes,
            "train_seconds": self.dense_seconds + train,
            "predict_ms": 1000 * seconds,
        }
        self.save()
        print(f"{name}: {self.result['rows'][name]}", flush=True)

    def fill(self) -> None:
        """Every row that is missing."""
        whole, compact, rows = self.run.dense, self.run.compact, self.result["rows"]
        size = {"dense": count(whole, self.data.example).params, "compact": count(compact, self.data.example).params}
        scales = {
            key: sum(v.numel() for n, v in net.named_parameters() if v.dim() > 1)
            for key, net in (("dense", whole), ("compact", compact))
        }
        if "dense MAP" not in rows:
            self.measure("dense MAP", self.plain(whole), params=size["dense"], passes=1, train=0.0)
        if "dense BNN" not in rows:
            net, seconds = self.dense_posterior()
            total = size["dense"] + scales["dense"]
            self.measure("dense BNN", self.posterior(net), params=total, passes=self.setting.draws, train=seconds)
        if "compact" not in rows:
            seconds = self.run.report["seconds"] - self.run.report["bayesian"]["seconds"]
            self.measure("compact", self.plain(compact), params=size["compact"], passes=1, train=seconds)
        if "compact BNN" not in rows:
            assert self.run.bayesian is not None
            total = size["compact"] + scales["compact"]
            self.measure(
                "compact BNN",
                self.posterior(self.run.bayesian),
                params=total,
                passes=self.setting.draws,
                train=self.run.report["seconds"],
            )
        if "ensemble of 3" not in rows:
            start = time.perf_counter()
            nets = list(self.members())
            self.measure(
                "ensemble of 3",
                self.together(nets),
                params=MEMBERS * size["dense"],
                passes=MEMBERS,
                train=time.perf_counter() - start,
            )


def table(name: str) -> str:
    """The rows of all seeds that have a result, as Markdown: mean ± standard deviation over seeds."""
    found = [json.loads(path.read_text()) for path in sorted(RESULTS.glob(f"uncertainty_{name}_*.json"))]
    if not found:
        return ""
    unknown = list(next(iter(found[0]["rows"].values()))["auroc"])
    heads = [
        "",
        "accuracy",
        "NLL",
        "ECE",
        *(f"AUROC {k}" for k in unknown),
        "numbers stored",
        "training",
        "ms an image",
    ]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]

    def cell(values: list[float], digits: int, scale: float = 1.0, unit: str = "") -> str:
        spread = f" ± {scale * stdev(values):.{digits}f}" if len(values) > 1 else ""
        return f"{scale * mean(values):.{digits}f}{spread}{unit}"

    for row in SETTINGS[name].names:
        have = [result["rows"][row] for result in found if row in result["rows"]]
        if not have:
            continue
        columns = [
            row,
            cell([r["accuracy"] for r in have], 2, 100, " %"),
            cell([r["nll"] for r in have], 4),
            cell([r["ece"] for r in have], 4),
            *(cell([r["auroc"][k] for r in have], 4) for k in unknown),
            f"{mean(r['params'] for r in have):,.0f}",
            f"{mean(r['train_seconds'] for r in have) / 60:.0f} min",
            f"{mean(r['predict_ms'] for r in have):.2f}",
        ]
        lines.append("| " + " | ".join(columns) + " |")
    return "\n".join(lines)


def all_tables() -> str:
    """A table per setting that has a result."""
    return "\n\n".join(
        f"{setting.net}, {setting.data}:\n\n{text}" for name, setting in SETTINGS.items() if (text := table(name))
    )


def main() -> None:
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    if wanted == "table":
        print(all_tables())
        return
    RESULTS.mkdir(exist_ok=True)
    for name, setting in SETTINGS.items():
        for seed in setting.seeds:
            if wanted not in name or (len(sys.argv) > 2 and int(sys.argv[2]) != seed):
                continue
            path: Path = RESULTS / f"uncertainty_{name}_{seed}.json"
            if path.exists() and set(json.loads(path.read_text())["rows"]) == set(setting.names):
                continue
            print(f"== {name}, seed {seed}", flush=True)
            Setup(setting, name, seed).fill()
        print(table(name))


if __name__ == "__main__":
    main()
