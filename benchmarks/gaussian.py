"""Filter SNR of mean-field Gaussian weights: LeNet-5 within a drop, ResNet-20 to a budget, with default settings."""

from rows import Row, run

ROWS = [
    Row("gaussian-lenet5-mnist", "lenet5", "mnist", {"method": "gaussian", "max_drop": 0.3}),
    Row(
        "gaussian-resnet20-cifar10",
        "resnet20",
        "cifar10",
        {"method": "gaussian", "target_macs": 0.6},
        weights="resnet20_cifar10.safetensors",
    ),
]

if __name__ == "__main__":
    run(ROWS)
