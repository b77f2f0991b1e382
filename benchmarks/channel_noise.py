"""Channel noise with a priced KL: fixed budgets, fixed epochs, nothing chosen on data.

Every budget is what a published system reached; the accuracy beside it is the question. LeNet rows
train a dense network first (10 epochs, one per seed) and go on for 40, the others start from given weights.
"""

from rows import Row, run

LENET = {"epochs": 40}
DENSE = 10
SEEDS = (0, 1, 2)

ROWS = [
    Row(
        "ard-lenet5-mnist-m07",
        "lenet5",
        "mnist",
        {"method": "ard", "target_macs": 0.07, **LENET},
        dense=DENSE,
        seeds=SEEDS,
    ),
    Row(
        "ard-lenet5-mnist-p006",
        "lenet5",
        "mnist",
        {"method": "ard", "target_macs": 0.06, "target_params": 0.006, **LENET},
        dense=DENSE,
        seeds=SEEDS,
    ),
    Row(
        "ard-lenet5-mnist-m021",
        "lenet5",
        "mnist",
        {"method": "ard", "target_macs": 0.021, **LENET},
        dense=DENSE,
        seeds=SEEDS,
    ),
    Row(
        "ard-lenet300-mnist-p03",
        "lenet300",
        "mnist",
        {"method": "ard", "target_params": 0.03, **LENET},
        dense=DENSE,
        seeds=SEEDS,
    ),
    *(
        Row(
            f"{method}-lenet5-mnist-m07",
            "lenet5",
            "mnist",
            {"method": method, "target_macs": 0.07, **LENET},
            dense=DENSE,
        )
        for method in ("sbp", "rbp", "rbp-spike")
    ),
    Row(
        "ard-resnet20-cifar10-m70",
        "resnet20",
        "cifar10",
        {"method": "ard", "target_macs": 0.70, "epochs": 18},
        weights="resnet20_cifar10.safetensors",
    ),
    Row(
        "ard-vgg16-cifar10-m25",
        "vgg16",
        "cifar10",
        {"method": "ard", "target_macs": 0.25, "target_params": 0.07, "epochs": 20},
        weights="vgg16_cifar10.safetensors",
    ),
    Row(
        "ard-vgg16-cifar10-m16",
        "vgg16",
        "cifar10",
        {"method": "ard", "target_macs": 0.16, "epochs": 20},
        weights="vgg16_cifar10.safetensors",
    ),
    Row(
        "ard-resnet56-cifar10-m50",
        "resnet56",
        "cifar10",
        {"method": "ard", "target_macs": 0.50, "epochs": 40},
        weights="resnet56_cifar10.safetensors",
    ),
    Row(
        "ard-resnet56-cifar10-m25",
        "resnet56",
        "cifar10",
        {"method": "ard", "target_macs": 0.25, "epochs": 40},
        weights="resnet56_cifar10.safetensors",
    ),
    Row(
        "ard-resnet56-cifar10-m215",
        "resnet56",
        "cifar10",
        {"method": "ard", "target_macs": 0.215, "epochs": 40},
        weights="resnet56_cifar10.safetensors",
    ),
]

if __name__ == "__main__":
    run(ROWS)
