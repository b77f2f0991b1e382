"""Distillation and label smoothing against their formulas; answers that are asked for once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.data import Augment
from pyrobnn.data.split import Split
from pyrobnn.errors import ConfigError
from pyrobnn.inference.terms import Distillation, LabelSmoothing, Step, outputs_by_view

CPU = torch.device("cpu")


def split(augment: Augment | None) -> Split:
    images = torch.randint(0, 256, (9, 1, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Split(images, torch.arange(9) % 3, (0.5,), (0.25,), augment)


class Teacher(nn.Module):
    """Counts its calls; tells left from right."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.calls = nn.Linear(36, 3), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(x.flatten(1))


def step(x: Tensor, y: Tensor, view: Tensor | None = None) -> Step:
    model = pb.BayesianModel(nn.Linear(36, 3), data_size=9)
    return Step(x, y, torch.randn(len(x), 3, generator=torch.Generator().manual_seed(1)), model, None, view)


def test_the_formula_of_hinton() -> None:
    teacher, x = Teacher(), torch.randn(5, 1, 6, 6)
    term, one = Distillation(teacher, weight=0.6, temperature=3.0), step(x, torch.zeros(5, dtype=torch.long))
    p, q = torch.softmax(teacher(x) / 3, -1), torch.softmax(one.output / 3, -1)
    wanted = 0.6 * 9 * (p * (p / q).log()).sum(-1).mean()
    assert torch.allclose(term(one), wanted, rtol=1e-5) and term.nll_weight == pytest.approx(0.4)
    for wrong in ({"weight": 1.2}, {"temperature": 0.0}):
        with pytest.raises(ConfigError, match="distillation needs"):
            Distillation(teacher, **wrong)


@pytest.mark.parametrize("flip", [False, True])
def test_kept_answers_are_those_of_the_teacher(flip: bool) -> None:
    """Without shifts an answer by view is the answer to the batch itself, mirrored or not."""
    data, teacher = split(Augment(flip=flip) if flip else None), Teacher().eval()
    kept = outputs_by_view(teacher, data, None, CPU, batch_size=4)
    assert kept.shape == (9 * data.num_views, 3)
    live, once = Distillation(teacher), Distillation(teacher, logits=kept)
    for x, y, view, _ in data.examples(4, generator=torch.Generator().manual_seed(2), augment=True):
        assert torch.allclose(kept[view], teacher(x), atol=1e-6)
        # A divergence of nearly equal distributions is a difference of logarithms: six digits of those.
        assert torch.allclose(live(step(x, y)), once(step(x, y, view)), atol=1e-5)


def test_a_shifted_image_is_taught_what_the_image_itself_is() -> None:
    data, teacher = split(Augment(shift=2)), Teacher().eval()
    once = Distillation(teacher, logits=outputs_by_view(teacher, data, None, CPU))
    calls = once.teacher.calls
    x, y, view, _ = next(data.examples(9, generator=torch.Generator().manual_seed(2), augment=True))
    still = data.normalise(data.images[view])
    log_p = F.log_softmax(teacher(still) / 4, -1)
    one = step(x, y, view)
    wanted = 0.7 * 16 * F.kl_div(F.log_softmax(one.output / 4, -1), log_p, log_target=True, reduction="batchmean")
    assert torch.allclose(once(one), wanted, rtol=1e-5) and once.teacher.calls == calls
    once(step(x, y))  # images that nobody knows: the teacher is asked
    assert once.teacher.calls == calls + 1


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_smoothed_labels_are_those_of_torch(weight: float) -> None:
    term, one = LabelSmoothing(0.2, weight), step(torch.randn(5, 1, 6, 6), torch.arange(5) % 3)
    nll = F.cross_entropy(one.output, one.y)
    wanted = weight * F.cross_entropy(one.output, one.y, label_smoothing=0.2)
    assert torch.allclose(weight * term.nll_weight * nll + term(one), wanted, rtol=1e-5)
    with pytest.raises(ConfigError, match="from 0 to below 1"):
        LabelSmoothing(1.0)


def test_one_logit_is_taught_as_two() -> None:
    teacher, student = torch.randn(9, 1), torch.randn(9, 1)
    two = [torch.cat([torch.zeros_like(z), z], 1) for z in (teacher, student)]
    term = Distillation(nn.Linear(3, 1), weight=0.7, temperature=2.0)
    assert float(term.divergence(teacher, student)) == pytest.approx(float(term.divergence(*two)), rel=1e-6)
    assert float(term.divergence(teacher, student)) > 0.01
    steps = [Step(teacher, teacher, output, None, None, None) for output in (student, two[1])]  # type: ignore[arg-type]
    one, both = (float(LabelSmoothing(0.1)(step)) for step in steps)
    assert one == pytest.approx(both, rel=1e-6) and one > 0.05
