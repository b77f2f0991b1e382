"""One pass of means and variances against 100 sampled passes: quality and time of the predictive.

LeNet-5 with a Gaussian posterior with one variance per kernel, fitted around trained weights by the moments
estimator. NLL and ECE on the first 2,000 images of the MNIST test set; AUROC of the predictive entropy against CIFAR-10 in grey at
28x28 and against MNIST rotated by 90 degrees. CPU seconds for 1,000 images, timed once.
Writes benchmarks/results/moments_predictive.json.

    python benchmarks/moments_predictive.py [dense.safetensors] [images]
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import pyrobnn as pb
from pyrobnn.inference.schedules import WarmUp
from pyrobnn.metrics.evaluate import ood_auroc
from pyrobnn.priors.tensor_normal import TensorNormal

SEED = 0
IMAGES = int(sys.argv[2]) if len(sys.argv) > 2 else 2000
torch.set_num_threads(1)
torch.manual_seed(SEED)
data = pb.load_data("mnist")
net = pb.nets.lenet5()
common = {"batch_size": 128, "seed": SEED, "validate": False}
if len(sys.argv) > 1:
    pb.nets.load_weights(net, sys.argv[1])
else:
    dense = pb.BayesianModel(net, data_size=len(data.train))
    pb.fit(dense, pb.guides.NoLatents(), data, epochs=4, lr=2e-3, **common)
    net = pb.deterministic_net(dense, pb.guides.NoLatents())
model = pb.BayesianModel(net, TensorNormal("fan_in"), data_size=len(data.train))
guide = pb.guides.KernelMeanField(model, scale_lr=5.0)
settings = {"epochs": 1, "max_steps": 250, "lr": 1e-3, "kl_schedule": WarmUp(0.5, 0.0, 0.1)}
fitted = pb.fit(model, guide, data, estimator="moments", **settings, **common)

test = data.test.take(IMAGES)
x = torch.cat([batch for batch, _ in test.batches(500)])
labels = torch.cat([y for _, y in test.batches(500)])
cifar = pb.load_data("cifar10").test.take(IMAGES)


def grey(images: Tensor) -> Tensor:
    """CIFAR-10 (uint8) as MNIST images: grey, 28x28, with MNIST's normalisation."""
    small = F.interpolate(images.float().mean(1, keepdim=True) / 255, size=28, mode="bilinear")
    return (small - torch.tensor(data.mean).view(1, -1, 1, 1)) / torch.tensor(data.std).view(1, -1, 1, 1)


unknown = {"cifar10 in grey": grey(cifar.images), "mnist rotated": x.rot90(1, (2, 3))}
rows = {}
for name, options in (
    ("moments, 1 pass", {"estimator": "moments"}),
    ("weights, 100 draws", {"estimator": "weight", "draws": 100}),
    ("weights, 10 draws", {"estimator": "weight", "draws": 10}),
):
    known = pb.predict(fitted.model, fitted.guide, x, **options)
    start = time.process_time()
    pb.predict(fitted.model, fitted.guide, x[:1000], **options)
    seconds = time.process_time() - start
    figures = known.metrics(labels)
    rows[name] = {
        "accuracy": figures.accuracy,
        "nll": figures.nll,
        "ece": figures.ece,
        "auroc": {
            kind: ood_auroc(
                known.predictive_entropy, pb.predict(fitted.model, fitted.guide, images, **options).predictive_entropy
            )
            for kind, images in unknown.items()
        },
        "mutual_information": float(known.mutual_information.mean()),
        "seconds_per_1000": seconds,
    }
    print(name, rows[name], flush=True)

plain = pb.deterministic_net(fitted.model, fitted.guide).eval()
start = time.process_time()
with torch.no_grad():
    for part in x[:1000].split(500):
        plain(part)
result = {
    "net": "lenet5",
    "data": "mnist",
    "images": IMAGES,
    "seed": SEED,
    "plain_seconds_per_1000": time.process_time() - start,
    "fit": {k: str(v) for k, v in settings.items()},
    "rows": rows,
}
path = Path(__file__).parent / "results" / "moments_predictive.json"
path.parent.mkdir(exist_ok=True)
path.write_text(json.dumps(result, indent=1) + "\n")
