"""Options that several commands share, and those that come from the one list of a run's options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from pyrobnn.pipeline.config import CompressionConfig, Option

Model = Annotated[
    str,
    typer.Option(
        "--model", help="Built-in name, torchvision name, package.module:factory, or path/to/file.py:factory."
    ),
]
DataOption = Annotated[
    str,
    typer.Option("--data", help="digits, mnist, fashion_mnist, cifar10, cifar100, …; an .npz file; an image folder."),
]
Protect = Annotated[
    list[str] | None, typer.Option("--protect", help="Pattern of group or module names not to cut; repeatable.")
]


def with_config_options(*, own: tuple[str, ...] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command that takes ``**options`` one option for every shown field of `CompressionConfig`.

    Args:
        own: fields that the command declares itself.
    """
    found = [option for option in CompressionConfig.options() if option.shown and option.name not in own]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        first = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        parameters = [*(p.replace(kind=p.KEYWORD_ONLY) for p in first), *map(_parameter, found)]
        # Typer reads both; the real function takes what is not its own as keywords.
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorate


def _parameter(option: Option) -> inspect.Parameter:
    kind: Any = option.kind
    if option.many:
        kind = list[kind] | None
    elif option.default is None:
        kind = kind | None
    return inspect.Parameter(
        option.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None if option.many else option.default,
        annotation=Annotated[kind, typer.Option(option.flag, help=option.help)],
    )
