"""Single items of torch data sets and loaders: their indices, images and targets."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler, default_collate
from torch.utils.data.distributed import DistributedSampler

from pyrobnn.data.notes import Notes
from pyrobnn.data.pictures import channels_first, pixels
from pyrobnn.data.raw import is_channels_first
from pyrobnn.data.tensors import checked_layout, image_values
from pyrobnn.errors import DataError


def is_pair(source: Any) -> bool:
    """Whether this is ``(images, targets)``."""
    return isinstance(source, tuple | list) and len(source) == 2


def class_names(sources: dict[str, Any]) -> Any:
    """The attribute `classes` of data sets, which have to agree: a label is the number of a name.

    Raises:
        DataError: Two parts have different names.
    """
    found = {part: getattr(dataset_of(source), "classes", None) for part, source in sources.items()}
    named = {part: list(names) for part, names in found.items() if isinstance(names, list | tuple)}
    first = next(iter(named), "")
    for part, names in named.items():
        if names != named[first]:
            odd = [name for name in (*named[first], *names) if (name in names) != (name in named[first])]
            raise DataError(
                f"expected the same classes, in the same order, in the {first} and {part} data sets, got "
                + (f"{odd[0]!r} in one only" if odd else f"{names[:3]} for {named[first][:3]}")
            )
    return next((names for names in found.values() if names is not None), None)


def dataset_of(source: Any) -> Any:
    """The data set of a loader; a data set itself."""
    return source.dataset if isinstance(source, DataLoader) else source


def items_of(source: Any, part: str, notes: Notes) -> Iterable[Any]:
    """The items of a data set; of a loader those that its sampler visits, each once and in the order of the data set."""
    dataset = dataset_of(source)
    if isinstance(source, DataLoader) and hasattr(dataset, "__len__"):
        if source.collate_fn not in (default_collate, None) and source.batch_size is not None:
            notes.add("the collate_fn of a DataLoader is not used: stream=True takes the loader as it is", part)
        rows = rows_of(source, notes, part)
        return (dataset[row] for row in rows)
    if hasattr(dataset, "__len__"):
        return (dataset[row] for row in range(len(dataset)))
    return iter(dataset)  # an IterableDataset


def rows_of(loader: DataLoader[Any], notes: Notes, part: str) -> Iterable[int]:
    """The rows that the sampler of a loader visits, each once and in order."""
    refuse_shared(loader, part)
    sampler = loader.sampler
    whole = range(len(loader.dataset))  # type: ignore[arg-type]
    # Where batches are given, torch puts a sampler of all images there.
    batches = loader.batch_sampler if loader.batch_size is None else None
    plain = isinstance(sampler, SequentialSampler) or (isinstance(sampler, RandomSampler) and not sampler.replacement)
    if (plain or sampler is None) and batches is None:
        return whole
    with torch.random.fork_rng(devices=[]):
        visited = [int(row) for row in (sampler if batches is None else chain.from_iterable(batches))]
    rows = sorted(set(visited))
    if len(rows) < len(visited):
        notes.add("a sampler that repeats images is not used: stream=True takes the DataLoader as it is", part)
    if len(rows) < len(whole):
        notes.add(f"{len(whole) - len(rows):,} images that the sampler of the DataLoader leaves out are left out", part)
    return rows


def samplers_of(loader: DataLoader[Any]) -> tuple[Any, Any]:
    """The sampler of a loader, and that inside its batch sampler: another one where batches are given."""
    return loader.sampler, getattr(loader.batch_sampler, "sampler", None)


def refuse_shared(loader: DataLoader[Any], part: str) -> None:
    """A loader that gives each process its own images would be shared twice.

    Raises:
        DataError: its sampler is torch's `DistributedSampler`.
    """
    if any(isinstance(sampler, DistributedSampler) for sampler in samplers_of(loader)):
        raise DataError(
            f"{part}: expected a DataLoader of all images, got one with a DistributedSampler: leave the sampler out, every "
            "process takes its part of each batch"
        )


def pair_of(item: Any, number: int, where: str) -> tuple[Any, Any]:
    """An item as (image, target)."""
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise DataError(
            f"{where}: expected (image, label) from the data set, got {type(item).__name__} at number {number}"
        )
    return item[0], item[1]


def image_of(image: Any, where: str, notes: Notes, signals: bool = False) -> tuple[np.ndarray, bool]:
    """One image ``[C, H, W]`` of uint8, uint16 or float32, and whether it is a picture (of any size and colour)."""
    if signals and isinstance(image, np.ndarray):
        image = torch.from_numpy(image)
    if isinstance(image, Tensor):
        if image.ndim == 2 and not signals:
            image = image[None]
        if image.ndim < 2:
            raise DataError(f"{where}: expected images [C, H, W], got shape {tuple(image.shape)}")
        return image_values(checked_layout(image, image.shape, where, notes).detach().cpu(), where), False
    if hasattr(image, "convert") and hasattr(image, "mode"):
        try:
            return pixels(image, where, notes), True
        except DataError:
            raise
        except Exception as error:  # Pillow reads the file only now
            raise DataError(f"{where}: an image is damaged ({reason(error)})") from error
    array = np.asarray(image)
    if array.ndim not in (2, 3):
        raise DataError(f"{where}: expected images [C, H, W], got shape {array.shape}")
    if array.ndim == 3 and is_channels_first(array.shape, f"{where}: a picture of shape {array.shape}", notes):
        return image_values(torch.from_numpy(np.ascontiguousarray(array)), where), False
    return channels_first(image_values(torch.from_numpy(np.ascontiguousarray(array)), where)), False


def reason(error: BaseException) -> str:
    """The first line of an error."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def target_of(target: Any, where: str) -> Any:
    """The target of an item as an array."""
    if isinstance(target, Tensor):
        return target.detach().cpu().numpy()
    if hasattr(target, "convert") and hasattr(target, "mode"):  # a mask as a picture: palette indices are the classes
        return np.asarray(target)
    try:
        return np.asarray(target)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: expected a class number as label, got {target!r:.60}") from error


def stacked(targets: list[Any], where: str) -> np.ndarray:
    """Targets of all items as one array, checked to be numbers of one shape."""
    odd = next((t for t in targets if t.dtype.kind not in "iufb" or t.shape != targets[0].shape), None)
    if odd is not None:
        raise DataError(f"{where}: expected a class number as label, got {odd.tolist()!r:.60} (of shape {odd.shape})")
    return np.stack(targets)
