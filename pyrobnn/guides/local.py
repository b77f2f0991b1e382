"""Pyro's module-local parameters, for modules made before the setting was on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
from pyro.nn import PyroModule
from torch import nn


def prepare(*modules: Any) -> None:
    """Give every PyroModule inside the local store that Pyro adds only if the setting is on at creation."""
    for module in modules:
        for part in module.modules() if isinstance(module, nn.Module) else ():
            if isinstance(part, PyroModule) and not hasattr(part._pyro_context, "param_state"):
                part._pyro_context.param_state = {"params": {}, "constraints": {}}


@contextmanager
def local_params(*modules: Any) -> Iterator[None]:
    """Run with `module_local_params`: parameters live in the modules, not in the global store."""
    with pyro.settings.context(module_local_params=True):
        prepare(*modules)
        yield
