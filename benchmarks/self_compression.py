"""Self-compression: LeNet-5 and digits with a tolerance as the only request, ResNet-20 to a budget."""

from rows import Row, run

ROWS = [
    Row(
        "self-compression-lenet5-mnist",
        "lenet5",
        "mnist",
        {"method": "self-compression", "max_drop": 0.4, "epochs": 40},
    ),
    Row("self-compression-small_cnn-digits", "small_cnn", "digits", {"method": "self-compression", "max_drop": 1.5}),
    Row(
        "self-compression-resnet20-cifar10",
        "resnet20",
        "cifar10",
        {"method": "self-compression", "target_macs": 0.6, "epochs": 15},
        weights="resnet20_cifar10.safetensors",
    ),
]

if __name__ == "__main__":
    run(ROWS)
