"""Every name of `__init__.pyi` is there when it is asked for."""

from __future__ import annotations

import pytest

import pyrobnn as pb


@pytest.mark.parametrize("name", pb.__all__)
def test_public_name(name: str) -> None:
    assert getattr(pb, name) is not None


def test_what_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        pb.no_such_name  # noqa: B018
