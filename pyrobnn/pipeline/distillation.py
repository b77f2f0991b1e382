"""Distillation from the dense network: on which images, at which temperature, and how often it is evaluated."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.data import Augment, Data
from pyrobnn.errors import ConfigError
from pyrobnn.inference.folding import folded
from pyrobnn.inference.mixup import MixupDistillation
from pyrobnn.inference.precision import channels_last
from pyrobnn.inference.terms import Distillation, outputs_by_view
from pyrobnn.pipeline.recipe import Recipe
from pyrobnn.tasks import Task

MOST_LOGITS = 50_000_000  # of the dense network that are stored (200 MB)
SMALL_SHIFT = 1  # pixels of augmentation that hardly change its outputs


class Teacher:
    """The data that a compact network is tuned on, and the objective terms that come from the dense one.

    There are no such terms for a task without a distillation loss.

    Args:
        recipe: weights, temperature, hidden squares.
        data: of the run.
        device, autocast: as for the run.
        inference_dtype: of the dense network's passes in every step.
        epochs: of training with distillation.
        task: defines the distillation loss, if there is one.

    Raises:
        ConfigError: images are to be mixed, and the data or the task do not allow it.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: Data,
        device: torch.device,
        autocast: torch.dtype | None,
        inference_dtype: torch.dtype | None,
        *,
        epochs: int,
        task: Task,
    ) -> None:
        self.recipe, self._data, self.device, self.autocast = recipe, data, device, autocast
        self.inference_dtype, self.epochs, self.task = inference_dtype, epochs, task
        if recipe.mix and not self._of_pictures:
            raise ConfigError(
                f"mix={recipe.mix} of the recipe is for classes of pictures; leave it out for {task.name}"
            )
        self._fast: tuple[nn.Module, nn.Module] | None = None  # the dense network, and its folded copy
        self._logits: Tensor | None = None  # its outputs by view, computed when first needed
        self._terms: dict[float, Distillation] = {}  # by weight

    def distillation(self, dense: nn.Module, weight: float) -> list[Distillation]:
        """Soft targets for the training images.

        The dense network is evaluated once per image and mirror image where that is cheaper than in every epoch and
        fits in memory.
        """
        if not weight or self.task.divergence is None:
            return []
        fast = self._evaluated(dense)
        if self.once and self._logits is None:
            self._logits = outputs_by_view(fast, self._data.train, self.autocast, self.device).to(self.device)
        if weight not in self._terms:
            temperature, dtype = self.recipe.temperature, self.inference_dtype
            compare = None if self.task.softens else self.task.divergence
            self._terms[weight] = Distillation(fast, weight, temperature, dtype, self._logits, compare, copy=False)
        return [self._terms[weight]]

    def mixup(self, dense: nn.Module) -> list[MixupDistillation]:
        """Soft targets between training images (mixup), where the recipe has a weight for them."""
        if not self.recipe.blends or not self._of_pictures:
            return []
        return [
            MixupDistillation(self._evaluated(dense), self.recipe.blends, self.recipe.temperature, self.inference_dtype)
        ]

    @property
    def weight(self) -> float:
        """Weight of distillation in the loss while the compact network is tuned."""
        return 1.0 if self.recipe.mix else self.recipe.distillation

    @property
    def _of_pictures(self) -> bool:
        return self.task.softens and len(self._data.image_shape) == 3

    @property
    def data(self) -> Data:
        """What the compact network is tuned on: the run's data, with images mixed or partly hidden if the recipe says so."""
        data, recipe = self._data, self.recipe
        if not (recipe.cutout or recipe.mix) or len(data.image_shape) != 3:
            return data
        side = max(1, round(recipe.cutout * min(data.image_shape[1:]))) if recipe.cutout else 0
        augment = replace(data.train.augment or Augment(), cutout=side, mix=recipe.mix)
        return replace(data, train=replace(data.train, augment=augment))

    def _evaluated(self, dense: nn.Module) -> nn.Module:
        """The network with its normalisation folded in, as it is evaluated in every step."""
        if self._fast is None or self._fast[0] is not dense:
            fast = channels_last(folded(dense.to(self.device), self._data.example.to(self.device)))
            self._fast, self._logits, self._terms = (dense, fast), None, {}
        return self._fast[1]

    @property
    def once(self) -> bool:
        """Whether the outputs are computed once and stored: for shifts that hardly change them, and several epochs.

        LeNet-5 with shifts of 1 pixel: 0.82 % validation error with stored outputs, 0.78 % without, in 0.6 of the
        time. ResNet-20 at half of its MACs with shifts of 4, 3 epochs: 8.4 and 7.0 %.
        """
        split = self._data.train
        augment = split.augment or Augment()
        if (
            self.recipe.cutout
            or self.recipe.mix
            or augment.cutout
            or augment.shift > SMALL_SHIFT
            or augment.transform((1, 1)) is not None
        ):
            return False
        if not (self.task.softens and split.indexed and isinstance(split.images, Tensor)):
            return False
        few = len(split) * split.num_views * self._data.num_classes <= MOST_LOGITS
        return self.epochs > split.num_views and few

    def settings(self) -> dict[str, Any]:
        """For the report."""
        recipe = self.recipe
        names = ("cutout", "blends", "mix", "smoothing", "average")
        more = {name: getattr(recipe, name) for name in names if getattr(recipe, name)}
        if self.task.divergence is None:
            return {"distillation": 0.0, "infer_distillation": 0.0, **more}
        return {
            "distillation": self.weight,
            "infer_distillation": recipe.infer_distillation,
            "temperature": recipe.temperature,
            "teacher": "once per image" if self.once else "every step",
            **more,
        }
