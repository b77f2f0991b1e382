"""Torchvision's weights of an ImageNet classifier as a file for `--weights`.

    python examples/imagenet/weights.py resnet50 weights/resnet50.safetensors

They have seen all training images, and so whatever part of them is set aside: the file says so (`trained_on: all`).
`--random N` writes weights by chance for N classes, to try the commands without a download.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torchvision

import pyrobnn as pb

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    """Writes one file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="such as resnet50, vgg16_bn, mobilenet_v2")
    parser.add_argument("path", type=Path)
    parser.add_argument("--random", type=int, metavar="N")
    told = parser.parse_args()
    if told.random is None:
        net, seen = torchvision.models.get_model(told.model, weights="DEFAULT"), "all"
    else:
        torch.manual_seed(0)
        net, seen = torchvision.models.get_model(told.model, num_classes=told.random), "train"
    pb.nets.save_weights(net, told.path, mean=MEAN, std=STD, trained_on=seen)


if __name__ == "__main__":
    main()
