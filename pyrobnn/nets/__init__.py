"""Plain networks, their names and their weights files; nothing here depends on Pyro."""

from pyrobnn.nets.adapter import adapted
from pyrobnn.nets.channel_map import ChannelMap
from pyrobnn.nets.checks import check_fits, check_precision
from pyrobnn.nets.lenet import LeNet5, LeNet300, lenet5, lenet300
from pyrobnn.nets.normalise import Normalise, OnPixels
from pyrobnn.nets.registry import BUILT_IN, NetSpec, build, build_saved, build_spec, names, net_spec
from pyrobnn.nets.resnet import BasicBlock, ResNet, resnet20, resnet32, resnet56, resnet110
from pyrobnn.nets.small import SmallCNN, small_cnn
from pyrobnn.nets.vgg import VGG16, vgg16
from pyrobnn.nets.weights import WeightsInfo, load_weights, read_weights, save_weights

__all__ = [
    "BUILT_IN",
    "VGG16",
    "BasicBlock",
    "ChannelMap",
    "LeNet5",
    "LeNet300",
    "NetSpec",
    "Normalise",
    "OnPixels",
    "ResNet",
    "SmallCNN",
    "WeightsInfo",
    "adapted",
    "build",
    "build_saved",
    "build_spec",
    "check_fits",
    "check_precision",
    "lenet5",
    "lenet300",
    "load_weights",
    "names",
    "net_spec",
    "read_weights",
    "resnet20",
    "resnet32",
    "resnet56",
    "resnet110",
    "save_weights",
    "small_cnn",
    "vgg16",
]
