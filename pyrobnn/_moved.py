"""Old import paths of moved modules, which go on working with a DeprecationWarning."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

PACKAGE = "pyrobnn."
# Whole folders first: a module that is not listed below is looked for in its folder's successor.
FOLDERS = {"groups": "channels", "pruning": "channels"}
MODULES = {
    "groups.trace": "channels.tracer",
    "pruning.batchnorm": "inference.batchnorm",
    "pruning.criteria": "criteria.rules",
    "pruning.evidence": "criteria.evidence",
    "pruning.kernels": "criteria.kernels",
    "pruning.pairs": "criteria.pairs",
    "pruning.scores": "criteria.scores",
    "pruning.sparse": "io.sparse",
    "pruning.storage": "nets.storage",
    "posterior.arviz": "views.arviz",
    "posterior.kept": "summary.types",
    "posterior.plots": "views.plots",
    "posterior.plots_history": "views.plots_history",
    "posterior.plots_net": "views.plots_net",
    "posterior.plots_style": "views.plots_style",
    "posterior.shares": "summary.saliency",
    "posterior.state": "summary.state",
    "posterior.summary": "summary.summarize",
    "inference.checkpoint": "io.checkpoint",
    "inference.events": "inference.callbacks",
    "inference.turbo_events": "inference.turbo_updates",
    "inference.local": "guides.local",
    "methods.base": "pipeline.method",
    "report.metrics": "metrics.evaluate",
    "report.robustness": "metrics.robustness",
    "report.scores": "metrics.scores",
    "rundir": "compression.store",
}


def successor(name: str) -> str | None:
    """Where a module of an earlier version is now; None if it never moved."""
    if not name.startswith(PACKAGE):
        return None
    old = name.removeprefix(PACKAGE)
    folder, _, rest = old.partition(".")
    if old in MODULES:
        return PACKAGE + MODULES[old]
    if folder in FOLDERS:
        return PACKAGE + FOLDERS[folder] + (f".{rest}" if rest else "")
    return None


class Moved(MetaPathFinder, Loader):
    """Finds a moved module by its old name; attribute access goes to the new one."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if successor(fullname) is None:
            return None
        return ModuleSpec(fullname, self, is_package=fullname.count(".") == 1)

    def exec_module(self, module: ModuleType) -> None:
        name = successor(module.__name__)
        assert name is not None
        new = importlib.import_module(name)
        warnings.warn(f"{module.__name__} is now {name}", DeprecationWarning, stacklevel=2)
        module.__doc__ = new.__doc__
        module.__getattr__ = lambda attribute: getattr(new, attribute)  # type: ignore[method-assign]


def install() -> None:
    """Let the import system ask here last."""
    if not any(isinstance(finder, Moved) for finder in sys.meta_path):
        sys.meta_path.append(Moved())
