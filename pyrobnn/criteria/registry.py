"""All criteria by name."""

from __future__ import annotations

from pyrobnn.criteria.criterion import EVIDENCE, INCLUSION, SNR, Criterion
from pyrobnn.criteria.curvature import CURVATURE
from pyrobnn.criteria.evidence import BMRS_N, BMRS_U
from pyrobnn.criteria.laplace import LAPLACE
from pyrobnn.criteria.plain import BN_SCALE, FPGM, GROUP_FISHER, L1, RANDOM, TAYLOR
from pyrobnn.errors import ConfigError

CRITERIA: dict[str, Criterion] = {
    criterion.name: criterion
    for criterion in (
        SNR,
        INCLUSION,
        EVIDENCE,
        LAPLACE,
        CURVATURE,
        BMRS_N,
        BMRS_U,
        L1,
        BN_SCALE,
        FPGM,
        TAYLOR,
        GROUP_FISHER,
        RANDOM,
    )
}
ALIASES = {"bmr": "evidence", "budget": "snr", "fraction": "snr"}


def criterion(rule: str | Criterion) -> Criterion:
    """The criterion of a rule's name, or the one given.

    Raises:
        ConfigError: no such name.
    """
    if isinstance(rule, Criterion):
        return rule
    name = ALIASES.get(rule, rule)
    if name not in CRITERIA:
        raise ConfigError(f"unknown rule {rule!r}: use one of {', '.join((*CRITERIA, *ALIASES))}, or a Criterion")
    return CRITERIA[name]
