"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[str, typer.Option("--model", help="Built-in name, torchvision name, or package.module:factory.")]
DataOption = Annotated[
    str,
    typer.Option("--data", help="digits, mnist, fashion_mnist, cifar10, cifar100, …; an .npz file; an image folder."),
]
Protect = Annotated[
    list[str] | None, typer.Option("--protect", help="Pattern of group or module names not to cut; repeatable.")
]
