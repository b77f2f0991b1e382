"""`pyrobnn groups`: which channels can be cut, without any training."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from pyrobnn.cli.console import out_console
from pyrobnn.cli.options import Model, Protect
from pyrobnn.errors import ConfigError


def groups(
    model: Model,
    data: Annotated[str | None, typer.Option("--data", help="Take image size and classes from this data.")] = None,
    image: Annotated[
        str | None, typer.Option("--image", help="Channels x height x width, such as 3x32x32, instead of --data.")
    ] = None,
    classes: Annotated[
        int | None, typer.Option("--classes", help="Number of classes, without --data.", show_default="10")
    ] = None,
    protect: Protect = None,
) -> None:
    """Channel groups, their costs, and what cannot be cut and why: a dry run before hours of training."""
    import torch

    from pyrobnn.channels import channel_groups
    from pyrobnn.data import load_data
    from pyrobnn.nets import build, check_fits

    if classes is not None and classes < 1:
        raise ConfigError(f"--classes is how many there are, at least 1, got {classes}")
    if data is not None and (image is not None or classes is not None):
        raise ConfigError("--image and --classes are for a run without --data, which knows them: give one or the other")
    if data is not None:
        loaded = load_data(data)
        shape, classes = loaded.image_shape, loaded.num_classes
    else:
        shape = _image_shape(image) if image else _usual_shape(model)
    net = build(model, num_classes=classes or 10, in_channels=shape[0], image_size=tuple(shape[1:]))
    example = torch.zeros(2, *shape)
    check_fits(net, example)
    table = channel_groups(net, example, protect=tuple(protect or ()))
    total = table.cost(None)
    view = Table(title=f"{model}, {'x'.join(map(str, shape))}: {total.params:,} parameters, {total.macs:,} MACs")
    view.add_column("group")
    for column in ("channels", "params each", "MACs each", "tensors"):
        view.add_column(column, justify="right")
    for group in table:
        view.add_row(
            escape(group.name),
            str(group.channels),
            f"{float(group.cost.params):,.0f}",
            f"{float(group.cost.macs):,.0f}",
            str(len({member.tensor for member in group.members})),
        )
    out_console.print(view)
    for name, reason in table.refused.items():
        out_console.print(f"cannot cut {escape(name)}: {escape(reason)}", soft_wrap=True)


def _image_shape(text: str) -> tuple[int, int, int]:
    try:
        channels, height, width = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise ConfigError(f"--image is channels x height x width, such as 3x32x32, got {text!r}") from None
    if min(channels, height, width) < 1:
        raise ConfigError(f"--image needs positive sizes, got {text!r}")
    return channels, height, width


def _usual_shape(model: str) -> tuple[int, int, int]:
    """The images a network is made for, where it says so."""
    from pyrobnn.nets import BUILT_IN

    known = {"small_cnn": (1, 8, 8), "lenet5": (1, 28, 28), "lenet300": (1, 28, 28)}
    return known.get(model, (3, 32, 32) if model in BUILT_IN else (3, 224, 224))
