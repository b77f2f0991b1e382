"""Methods by name."""

from __future__ import annotations

import difflib

from pyrobnn.errors import ConfigError
from pyrobnn.io.objects import named_object
from pyrobnn.methods import (
    bayes_l1,
    controls,
    gaussian,
    hbfp,
    laplace,
    noise,
    rbp,
    self_compression,
    spike_slab,
    turbo_vbi,
)
from pyrobnn.pipeline.method import Method

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        noise.ARD,
        noise.SBP,
        laplace.METHOD,
        rbp.RBP,
        rbp.RBP_SPIKE,
        spike_slab.SS_IG,
        spike_slab.SS_GL,
        spike_slab.SS_GHS,
        spike_slab.SS_EDGE,
        turbo_vbi.METHOD,
        gaussian.METHOD,
        bayes_l1.METHOD,
        hbfp.HBFP,
        hbfp.HBFP_BAYES,
        *controls.CONTROLS,
        self_compression.METHOD,
        self_compression.METHOD_SNR,
    )
}


def get_method(name: str) -> Method:
    """The method of that name, or the one behind `package.module:NAME` or `path/to/file.py:NAME`.

    Raises:
        ConfigError: an unknown name, with the near ones in the message; or no `Method` is there.
    """
    if ":" in name:
        found: Method = named_object(name, "Method", lambda value: isinstance(value, Method), ConfigError)
        return found
    if name in METHODS:
        return METHODS[name]
    near = difflib.get_close_matches(name, METHODS, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(METHODS)}"
    raise ConfigError(f"unknown method {name!r}: {hint}")
