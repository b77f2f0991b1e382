"""Operations that users register are followed by the channel analysis and by the moments alike."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.channels.rules_math import elementwise
from pyrobnn.channels.tracer import RULES as CHANNEL_RULES
from pyrobnn.moments import Moments
from pyrobnn.moments.registry import RULES as MOMENT_RULES


@pytest.fixture(autouse=True)
def _rules_as_before() -> Iterator[None]:
    """What a test registers is forgotten after it."""
    before = dict(CHANNEL_RULES), dict(MOMENT_RULES)
    yield
    for rules, kept in zip((CHANNEL_RULES, MOMENT_RULES), before, strict=True):
        rules.clear()
        rules.update(kept)


HOW_TO = Path(__file__).parents[2] / "docs" / "how-to" / "operation.md"


def test_the_page_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", HOW_TO.read_text(encoding="utf-8"), flags=re.S)
    assert len(blocks) == 2
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks), encoding="utf-8")
    runpy.run_path(str(script))


def test_quadrature_of_a_registered_function_against_samples() -> None:
    function = pb.register_operation(lambda x: (x + x.sin()) * 0.5, channels="elementwise", moments="elementwise")
    loc, variance = torch.tensor([-1.0, 0.3, 2.0]), torch.tensor([0.2, 1.0, 0.5])
    found = function(Moments(loc, variance))
    draws = loc + variance.sqrt() * torch.randn(400_000, 3, generator=torch.Generator().manual_seed(0))
    samples = function(draws)
    assert torch.allclose(found.loc, samples.mean(0), atol=5e-3)
    assert torch.allclose(found.variance, samples.var(0), rtol=2e-2)


class Net(nn.Module):
    def __init__(self, act: object) -> None:
        super().__init__()
        self.a, self.b, self.act = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 3, 1), act

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.act(self.a(x))).mean((2, 3))


def test_a_torch_function_in_all_its_forms() -> None:
    x = torch.randn(2, 1, 6, 6)
    assert "cummax is not known" in pb.channel_groups(Net(lambda y: y.cummax(2)[0]), x).refused["a"]
    assert pb.register_operation(torch.sinc, channels=elementwise, moments="elementwise") is torch.sinc
    for act in (torch.sinc, lambda y: y.sinc(), lambda y: y.sinc_()):
        assert pb.channel_groups(Net(act), x).names == ["a"]
        assert isinstance(act(Moments(torch.ones(3), torch.ones(3))), Moments)


def test_a_wrong_rule_ends_as_a_refusal() -> None:
    wrong = pb.register_operation(lambda y: y - y.mean(1, keepdim=True), channels="elementwise")
    table = pb.channel_groups(Net(wrong), torch.randn(2, 1, 6, 6))
    assert "compact differs from mask" in table.refused["a"]


def test_rules_are_functions_or_elementwise() -> None:
    with pytest.raises(pb.ConfigError, match="expected channels='elementwise' or a function, got 'spatial'"):
        pb.register_operation(torch.sinc, channels="spatial")  # type: ignore[arg-type]
