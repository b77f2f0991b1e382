"""Modules under the names they had before."""

from __future__ import annotations

import importlib
import sys

import pytest

from pyrobnn import _moved


@pytest.mark.parametrize("old", sorted({*_moved.MODULES, *_moved.FOLDERS, "groups.table", "pruning.mask"}))
def test_old_names_lead_to_the_new_modules(old: str) -> None:
    name = _moved.PACKAGE + old
    sys.modules.pop(name, None)
    new = importlib.import_module(_moved.successor(name))
    with pytest.warns(DeprecationWarning, match=new.__name__):
        module = importlib.import_module(name)
    public = [attribute for attribute in vars(new) if not attribute.startswith("_")]
    assert public
    assert all(getattr(module, attribute) is getattr(new, attribute) for attribute in public)


def test_from_imports_of_old_packages() -> None:
    sys.modules.pop("pyrobnn.pruning", None)
    with pytest.warns(DeprecationWarning, match="channels"):
        from pyrobnn.pruning import PruningPlan, compact
    import pyrobnn as pb

    assert PruningPlan is pb.PruningPlan
    assert compact is pb.compact


def test_unknown_modules_stay_unknown() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("pyrobnn.nothing_of_the_kind")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("pyrobnn.groups.nothing_of_the_kind")
