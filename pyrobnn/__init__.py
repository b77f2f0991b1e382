"""Bayesian compression of convolutional networks on Pyro: fit a posterior, get a smaller network.

The public names are listed in ``__init__.pyi``. Each is imported when it is first used, because torch, Pyro and ArviZ
take seconds to load.
"""

import lazy_loader

from pyrobnn import _moved

__version__ = "0.1.0"

_moved.install()

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
