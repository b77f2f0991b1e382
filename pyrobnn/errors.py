"""The exceptions of the package.

Every message says what was expected, what came, and what to do. The command
line prints it as one line and exits with code 2.
"""

from __future__ import annotations


class PyrobnnError(Exception):
    """Base of all errors that pyrobnn raises on purpose."""


class DataError(PyrobnnError, ValueError):
    """Data that cannot be read or used: a missing file, wrong keys, labels out of range."""


class NetError(PyrobnnError, ValueError):
    """A network that cannot be built, traced or loaded, or weights that do not fit it."""


class PlanError(PyrobnnError, ValueError):
    """A pruning plan or budget that does not fit the network it is applied to."""


class CheckpointError(PyrobnnError, ValueError):
    """A run directory or file that is damaged or belongs to another run."""


class ConfigError(PyrobnnError, ValueError):
    """A setting outside its range, or a name that is not known."""


class NumericalError(PyrobnnError, ArithmeticError):
    """NaN or infinity during inference; the message names the site."""


class ProcessError(PyrobnnError, RuntimeError):
    """Another process of a run that several share has ended, or they were started wrongly."""


class OutOfMemory(PyrobnnError, MemoryError):
    """The device or the host has no memory for what was tried; the message says what to lower."""
