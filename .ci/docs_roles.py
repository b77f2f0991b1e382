"""For mkdocstrings: Sphinx roles in docstrings become code, and what a docstring is given at import is filled in."""

from __future__ import annotations

import inspect
import re
from typing import Any

import griffe

from pyrobnn.pipeline.config import CompressionConfig

ROLE = re.compile(r":(?:func|class|meth|mod|data|attr|exc):`~?(?:[\w.]*\.)?([\w]+)`")


class Roles(griffe.Extension):
    """See the module."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrites the docstring of every object before it is parsed."""
        if obj.docstring is None:
            return
        text = obj.docstring.value
        if "\nOPTIONS\n" in text:  # stands at the margin, so the rest has kept its indentation
            lines = [f"            - {o.name}: {o.help}" for o in CompressionConfig.options() if o.name != "method"]
            text = inspect.cleandoc("\n    " + text.lstrip().replace("\nOPTIONS\n", "\n".join(["", *lines, "", ""])))
        text = re.sub(r"(?<!`)`([^`\n]+)`(?!`)", r"``\1``", ROLE.sub(r"`\1`", text))
        obj.docstring.value = text
