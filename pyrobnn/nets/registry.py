"""From a name to a network: built-in, torchvision's, or the user's own factory."""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypedDict

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from pyrobnn.errors import NetError
from pyrobnn.io.files import first_line
from pyrobnn.io.objects import named_object
from pyrobnn.nets.lenet import lenet5, lenet300
from pyrobnn.nets.resnet import resnet20, resnet32, resnet56, resnet110
from pyrobnn.nets.small import small_cnn
from pyrobnn.nets.vgg import vgg16

#: The built-in networks. They win over torchvision's of the same name, which is ``torchvision.models:vgg16``.
BUILT_IN: dict[str, Callable[..., nn.Module]] = {
    "small_cnn": small_cnn,
    "lenet5": lenet5,
    "lenet300": lenet300,
    "vgg16": vgg16,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet56": resnet56,
    "resnet110": resnet110,
}


# What a file may say about how a network is called: sizes, and the switches that `net_spec` sets.
_SAVED_KWARGS = {
    "num_classes": int,
    "in_channels": int,
    "image_size": int,
    "image_width": int,
    "aux_logits": bool,
    "init_weights": bool,
}
_LARGEST = 10**6


class NetSpec(TypedDict):
    """What is needed to build a network again; plain JSON."""

    model: str
    kwargs: dict[str, Any]


def names() -> list[str]:
    """All names `build` knows: the built-in ones first, then torchvision's classifiers."""
    return [*BUILT_IN, *(name for name in _torchvision_names() if name not in BUILT_IN)]


def net_spec(
    name: str, *, num_classes: int = 10, in_channels: int = 3, image_size: int | tuple[int, ...] = 32
) -> NetSpec:
    """Decides how the network `name` is called for images and classes of this size.

    Args:
        name: A built-in name, the name of a torchvision classifier, or ``package.module:factory`` (or
            ``path/to/file.py:factory``). A factory (function or `nn.Module` class) gets those of the three sizes that
            its signature names.
        num_classes: Outputs.
        in_channels: Channels of the images.
        image_size: Height and width of the images in pixels: one number, or two where images are not square. Only
            then a factory that names an ``image_width`` gets one, beside ``image_size``, the height.

    Raises:
        NetError: The name is not known, or the network is made for another number of channels.

    >>> net_spec("lenet5", in_channels=1, image_size=28)["kwargs"]
    {'num_classes': 10, 'in_channels': 1, 'image_size': 28}
    >>> net_spec("resnet20")
    {'model': 'resnet20', 'kwargs': {'num_classes': 10, 'in_channels': 3}}
    """
    if not isinstance(name, str):
        raise NetError(f"expected a torch.nn.Module or the name of a network, got {type(name).__name__}")
    height, width = image_size if isinstance(image_size, tuple) else (image_size, image_size)
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "image_size": height}
    if width != height:
        sizes["image_width"] = width
    if ":" in name:
        return {"model": name, "kwargs": _accepted(_factory(name), sizes)}
    if name in BUILT_IN:
        return {"model": name, "kwargs": _accepted(BUILT_IN[name], sizes)}
    if name in _torchvision_names():
        if in_channels != 3:
            raise NetError(
                f"torchvision's {name} expects images with 3 channels, got {in_channels}: use a built-in net "
                f"({', '.join(BUILT_IN)}) or your own factory, package.module:factory"
            )
        kwargs: dict[str, Any] = {"num_classes": num_classes}
        if name.startswith("vit_"):
            kwargs["image_size"] = height
        if name in ("googlenet", "inception_v3"):
            # One output in training mode too, and no slow initialisation that warns.
            kwargs |= {"aux_logits": False, "init_weights": False}
        return {"model": name, "kwargs": kwargs}
    near = difflib.get_close_matches(name, names(), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"built-in are {', '.join(BUILT_IN)}"
    raise NetError(
        f"unknown net {name!r}: {hint} (or a torchvision classifier, package.module:factory, or path/to/file.py:factory)"
    )


def build_spec(spec: Mapping[str, Any]) -> nn.Module:
    """Builds the network that a `NetSpec` describes.

    Raises:
        NetError: The spec is not one, its name is not known, or the factory fails.
    """
    name, kwargs = spec.get("model"), spec.get("kwargs", {})
    if not isinstance(name, str) or not isinstance(kwargs, Mapping):
        raise NetError(f"expected a net spec {{'model': name, 'kwargs': {{...}}}}, got {dict(spec)!r}")
    if ":" in name:
        factory = _factory(name)
    elif name in BUILT_IN:
        factory = BUILT_IN[name]
    else:
        net_spec(name)  # raises, with similar names, if it is unknown
        factory = _torchvision_factory(name)
    return _call(factory, name, kwargs)


def _call(factory: Callable[..., Any], name: str, kwargs: Mapping[str, Any]) -> nn.Module:
    try:
        with warnings.catch_warnings():  # the check below says it better
            warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
            net = factory(**kwargs)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        if isinstance(error, NetError):
            raise
        raise NetError(f"{name} cannot be built with {dict(kwargs)}: {first_line(error)}") from error
    if not isinstance(net, nn.Module):
        raise NetError(f"{name} must return a torch.nn.Module, got {type(net).__name__}")
    if empty := [key for key, value in net.named_parameters() if not is_lazy(value) and value.numel() == 0]:
        raise NetError(
            f"{name} built with {dict(kwargs)} has no elements in {empty[0]!r}: it needs larger images or classes"
        )
    return net


def build_saved(spec: Mapping[str, Any]) -> nn.Module:
    """Builds the network that a file describes, on the `meta` device: shapes only, no memory, no code of its own.

    Built-in and torchvision names are known, with sizes and switches as arguments. Whatever else the file
    names is not imported, called or downloaded.

    Raises:
        NetError: The spec is not one, or names something else.
    """
    name, kwargs = spec.get("model"), spec.get("kwargs", {})
    if not isinstance(name, str) or not isinstance(kwargs, Mapping):
        raise NetError("the file says nothing about its network: expected a net spec {'model': name, 'kwargs': {...}}")
    home, _, plain = name.rpartition(":")
    known = plain in BUILT_IN if home in ("", "pyrobnn.nets") else False
    if not known and not (home in ("", "torchvision.models") and plain in _torchvision_names()):
        raise NetError(
            f"the network was made with --model {name}, and a file may not name code to be run: "
            "pass factory=, a function that builds the dense network (on the command line: --model)"
        )
    for key, value in kwargs.items():
        if _SAVED_KWARGS.get(key) is not type(value):
            raise NetError(f"the file asks for {name} with {key!r}, which files may not say: pass factory=")
        if type(value) is int and not 1 <= value <= _LARGEST:
            raise NetError(f"the file asks for {name} with {key}={value}: expected 1 to {_LARGEST}")
    factory = BUILT_IN[plain] if known else _torchvision_factory(plain)
    with torch.device("meta") if known else _Shapes():
        return _call(factory, name, kwargs)


class _Shapes(TorchFunctionMode):
    """Tensors made by their size alone have no memory; what torchvision computes (RegNet's widths) is computed."""

    _SIZED = frozenset({torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in self._SIZED and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def build(
    name: str, *, num_classes: int = 10, in_channels: int = 3, image_size: int | tuple[int, ...] = 32
) -> nn.Module:
    """Builds a network by name; the arguments are those of `net_spec`. Its weights are fresh.

    >>> build("lenet5", in_channels=1, image_size=28).fc1.in_features
    800
    """
    spec = net_spec(name, num_classes=num_classes, in_channels=in_channels, image_size=image_size)
    return build_spec(spec)


def _torchvision_names() -> list[str]:
    import torchvision

    return torchvision.models.list_models(module=torchvision.models)


def _torchvision_factory(name: str) -> Callable[..., nn.Module]:
    import torchvision

    return torchvision.models.get_model_builder(name)


def _factory(name: str) -> Callable[..., Any]:
    """The function or class behind ``package.module:factory`` or ``path/to/file.py:factory``."""
    found: Callable[..., Any] = named_object(name, "function or class", callable, NetError)
    return found


def _accepted(factory: Callable[..., Any], sizes: dict[str, int]) -> dict[str, Any]:
    """The sizes that the factory names; one that takes ``**kwargs`` gets `num_classes` alone."""
    parameters = inspect.signature(factory).parameters.values()
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        named.add("num_classes")
    return {key: value for key, value in sizes.items() if key in named}
