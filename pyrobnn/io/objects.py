"""Objects that a user names in text: ``package.module:name`` or ``path/to/file.py:name``.

Only what is typed by the user comes here, never a name that was read from a file of a run.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from pyrobnn.errors import PyrobnnError


def named_object(text: str, what: str, accept: Callable[[Any], bool], error: type[PyrobnnError]) -> Any:
    """The object of that name.

    Args:
        text: ``package.module:name``, installed or in the working directory; or ``path/to/file.py:name``. A file may
            import its neighbours. The same file gives the same module each time.
        what, accept: what is expected, in words, and whether an object is that.
        error: what to raise.

    Raises:
        PyrobnnError: of the given class: nothing there, or it cannot be imported.
    """
    place, _, attribute = text.rpartition(":")
    file = Path(place).expanduser()
    if file.suffix == ".py" and not file.is_file():
        raise error(f"no file {place!r} for {text!r}: expected path/to/file.py:name")
    try:
        module = _from_file(file) if file.suffix == ".py" else _from_path(place)
    except Exception as cause:  # whatever the user's module does
        first = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise error(
            f"cannot import {place!r} for {text!r}: {first}; expected package.module:name, installed or in the working "
            "directory, or path/to/file.py:name"
        ) from cause
    found = getattr(module, attribute, None)
    if not accept(found):
        near = difflib.get_close_matches(attribute, dir(module), n=3)
        hint = f": did you mean {' or '.join(near)}?" if near else ""
        raise error(f"module {place!r} has no {what} {attribute!r}{hint}")
    return found


def _from_path(name: str) -> ModuleType:
    with _on_path(Path.cwd()):  # a console script does not look where it is started; ``python -m`` does
        return importlib.import_module(name)


def _from_file(file: Path) -> ModuleType:
    file = file.resolve()
    name = f"{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up
    try:
        with _on_path(file.parent):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    added = str(folder) not in sys.path
    if added:
        sys.path.append(str(folder))
    try:
        yield
    finally:
        if added and str(folder) in sys.path:
            sys.path.remove(str(folder))
