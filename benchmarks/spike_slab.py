"""Spike-and-slab node selection: three slabs at the same budgets, fixed epochs, nothing chosen on data.

LeNet-5 in 40 epochs after 10 of dense training, ResNet-20 from given weights. The last row is the
weight-level variant, whose zeros are in `nonzero_params`.
"""

from rows import Row, run

LENET = {"target_macs": 0.07, "target_params": 0.007, "epochs": 40}

ROWS = [
    *(
        Row(f"{method}-lenet5-mnist", "lenet5", "mnist", {"method": method, **LENET}, dense=10)
        for method in ("ss-ig", "ss-gl", "ss-ghs")
    ),
    *(
        Row(
            f"{method}-resnet20-cifar10",
            "resnet20",
            "cifar10",
            {"method": method, "target_macs": 0.70, "epochs": 18},
            weights="resnet20_cifar10.safetensors",
        )
        for method in ("ss-ig", "ss-gl", "ss-ghs")
    ),
    Row(
        "ss-edge-lenet5-mnist",
        "lenet5",
        "mnist",
        {"method": "ss-edge", "target_macs": 0.25, "target_nonzero": 0.007, "epochs": 40},
        dense=10,
    ),
]

if __name__ == "__main__":
    run(ROWS)
