"""How the dense network teaches the compact one: on which images, at which temperature, and how often it is asked."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from pyrobnn.data import Augment, Data
from pyrobnn.inference.blends import Blends
from pyrobnn.inference.folding import folded
from pyrobnn.inference.precision import channels_last
from pyrobnn.inference.terms import Distillation, answers

if TYPE_CHECKING:
    from pyrobnn.pipeline.run_state import RunState

MOST_ANSWERS = 50_000_000  # logits of the dense network that are kept (200 MB)
SMALL_SHIFT = 1  # pixels of augmentation that leave its answers as they are


class Teaching:
    """What a run's compact network is tuned on, and the objective terms that come from the dense one.

    There are no such terms where the targets are not classes.
    """

    def __init__(self, run: RunState) -> None:
        self.run = run
        self._kept: Tensor | None = None  # answers, made when first needed

    def answers(self, dense: nn.Module, weight: float) -> list[Distillation]:
        """Soft targets for the training images.

        The dense network is asked once per image and mirror image where that is cheaper than in every epoch and fits
        in memory.
        """
        run = self.run
        if not weight or not run.classifies:
            return []
        asked = self._asked(dense)
        if self.once and self._kept is None:
            self._kept = answers(asked, run.data.train, run.autocast, run.device).to(run.device)
        return [Distillation(asked, weight, run.recipe.temperature, run.quick(), self._kept)]

    def between(self, dense: nn.Module) -> list[Blends]:
        """Soft targets for blends of training images, where the recipe asks for them."""
        run = self.run
        if not run.recipe.blends or not run.classifies:
            return []
        return [Blends(self._asked(dense), run.recipe.blends, run.recipe.temperature, run.quick())]

    @property
    def data(self) -> Data:
        """What the compact network is tuned on: the run's data, a part of every image hidden if the recipe says so."""
        run, data = self.run, self.run.data
        if not run.recipe.cutout:
            return data
        side = max(1, round(run.recipe.cutout * min(data.image_shape[1:])))
        return replace(data, train=replace(data.train, augment=replace(data.train.augment or Augment(), cutout=side)))

    def _asked(self, dense: nn.Module) -> nn.Module:
        """The network as fast as it can be, as it is asked in every step."""
        device = self.run.device
        return channels_last(folded(dense.to(device), self.run.data.example.to(device)))

    @property
    def once(self) -> bool:
        """Whether the answers are kept: shifts so small that they hardly change, and epochs to gain.

        LeNet-5 with shifts of 1 pixel: 0.82 % validation error with kept answers, 0.78 % without, in 0.6 of the
        time. ResNet-20 at half of its MACs with shifts of 4, 3 epochs: 8.4 and 7.0 %.
        """
        run, split = self.run, self.run.data.train
        augment = split.augment or Augment()
        if run.recipe.cutout or augment.cutout or augment.shift > SMALL_SHIFT:
            return False
        taught = run.epochs.tune + run.epochs.retune + (sum(run.epochs.infer) if run.recipe.infer_distillation else 0)
        return taught > split.num_views and len(split) * split.num_views * run.data.num_classes <= MOST_ANSWERS

    def settings(self) -> dict[str, Any]:
        """For the report."""
        recipe = self.run.recipe
        hidden = {"cutout": recipe.cutout} if recipe.cutout else {}
        if not self.run.classifies:
            return {"distillation": 0.0, **hidden}
        teacher = "once per image" if self.once else "every step"
        blends = {"blends": recipe.blends} if recipe.blends else {}
        return {
            "distillation": recipe.infer_distillation,
            "temperature": recipe.temperature,
            "teacher": teacher,
            **blends,
            **hidden,
        }
