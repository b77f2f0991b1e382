"""Evidence rules against quadrature of the definition ΔF = log E_q[p̃ / p]."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import simpson

from pyrobnn.criteria.evidence import bmrs_n, bmrs_u
from pyrobnn.errors import ConfigError

A, B = -20.0, 0.0
CASES = [(-3.0, 1.0), (-15.0, 3.0), (0.5, 2.0), (-19.5, 0.7), (2.0, 5.0)]


def double(x: float) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64)


def truncated(t: np.ndarray, loc: float, scale: float, whole: np.ndarray) -> np.ndarray:
    """Density of N(loc, scale²) truncated to [A, B] at t, normalised on the grid `whole`."""
    density = lambda x: np.exp(-0.5 * ((x - loc) / scale) ** 2)  # noqa: E731
    return density(t) / simpson(density(whole), x=whole)


@pytest.mark.parametrize(("loc", "scale"), CASES)
@pytest.mark.parametrize(("reduced_loc", "reduced_scale"), [(A, 1e-6), (A, 0.5), (-10.0, 0.3)])
def test_bmrs_n(loc: float, scale: float, reduced_loc: float, reduced_scale: float) -> None:
    whole = np.linspace(A, B, 400_001)
    reach = 14 * reduced_scale
    t = np.linspace(max(A, reduced_loc - reach), min(B, reduced_loc + reach), 100_001)
    reduced = truncated(t, reduced_loc, reduced_scale, t)  # all its mass lies on t
    expected = math.log(simpson(truncated(t, loc, scale, whole) * reduced * (B - A), x=t))
    got = bmrs_n(double(loc), double(scale), reduced_loc=reduced_loc, reduced_scale=reduced_scale)
    assert got.dtype == torch.float64
    assert got.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("loc", "scale"), CASES)
@pytest.mark.parametrize("bits", [4, 8])
def test_bmrs_u(loc: float, scale: float, bits: int) -> None:
    whole = np.linspace(A, B, 400_001)
    t = np.linspace(-23 * math.log(2), -bits * math.log(2), 200_001)
    share = (t[-1] - t[0]) / (B - A)
    expected = math.log(simpson(truncated(t, loc, scale, whole), x=t) / share)
    assert bmrs_u(double(loc), double(scale), bits=bits).item() == pytest.approx(expected, abs=1e-6)


def test_bmrs_decides_the_clear_cases_and_stays_finite() -> None:
    loc = torch.tensor([0.0, 0.0, -18.0, 5.0, -20.0])  # kept, kept, dead, at the edge, dead
    scale = torch.tensor([0.05, 0.007, 2.0, 0.007, 1.0])
    for rule in (bmrs_n, bmrs_u):
        delta = rule(loc, scale)
        assert not torch.isnan(delta).any()
        assert (delta[[0, 1, 3]] < 0).all()
    assert (bmrs_n(loc, scale)[[2, 4]] > 0).all()


def test_nonsense_is_refused() -> None:
    zero, one = torch.zeros(1), torch.ones(1)
    with pytest.raises(ConfigError, match="a < b"):
        bmrs_n(zero, one, 1.0, 0.0)
    with pytest.raises(ConfigError, match="reduced_scale"):
        bmrs_n(zero, one, reduced_scale=0.0)
    with pytest.raises(ConfigError, match="bits"):
        bmrs_u(zero, one, bits=23)
