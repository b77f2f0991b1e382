"""Turbo-VBI: filters cut and single weights zeroed, fixed targets and epochs, nothing chosen on data.

The report's `zeros` holds the mean run of the support beside those of an independent support read from
the same posterior and of chance, all at equal sparsity; the second row is a run whose chains have no memory.
"""

from dataclasses import replace
from functools import partial

from rows import Row, run

from pyrobnn.methods.turbo_vbi import METHOD
from pyrobnn.priors.turbo import Transitions, Turbo

# The control: weights of a filter, and filters, without memory; of the same density, under the same bound on
# their number. Whole filters are still on or off, which is what is cut.
DENSITY = Transitions().p01 / (Transitions().p01 + Transitions().p10)
INDEPENDENT = replace(
    METHOD,
    name="turbo-vbi-independent",
    prior=partial(Turbo, transitions=Transitions(DENSITY, 1 - DENSITY, 0.5, 0.5)),
)

LENET = {"target_macs": 0.07, "target_nonzero": 0.007, "epochs": 40}

ROWS = [
    Row(
        "turbo-vbi-lenet5-mnist",
        "lenet5",
        "mnist",
        {"method": "turbo-vbi", **LENET},
        dense=10,
    ),
    Row("turbo-vbi-independent-lenet5-mnist", "lenet5", "mnist", {"method": INDEPENDENT, **LENET}, dense=10),
    Row(
        "turbo-vbi-resnet20-cifar10",
        "resnet20",
        "cifar10",
        {"method": "turbo-vbi", "target_nonzero": 0.4, "epochs": 18},
        weights="resnet20_cifar10.safetensors",
    ),
    Row(
        "turbo-vbi-vgg16-cifar10",
        "vgg16",
        "cifar10",
        {"method": "turbo-vbi", "target_nonzero": 0.08, "epochs": 10},
        weights="vgg16_cifar10.safetensors",
    ),
]

if __name__ == "__main__":
    run(ROWS)
