"""Label rules of arithmetic, activations, pooling and reductions."""

from __future__ import annotations

import torch
from torch import Tensor

from pyrobnn.channels.calls import Call, tensors_in
from pyrobnn.channels.labels import varying
from pyrobnn.channels.tracer import Tracer, no_labels, rule, source_of

# Element by element


_ELEMENTWISE = """
    relu relu6 hardswish silu gelu tanh leaky_relu elu selu celu mish softsign softshrink hardshrink
    tanhshrink rrelu dropout dropout1d dropout2d dropout3d feature_dropout abs neg square sqrt sign
    sin erf round floor ceil trunc clone detach contiguous to float double half bfloat16 type cpu cuda
    data requires_grad zeros_like nan_to_num positive alias real type_as log1p expm1 absolute negative
    sigmoid hardsigmoid logsigmoid softplus exp log log2 log10 rsqrt reciprocal cos ones_like
    full_like logit erfc alpha_dropout feature_alpha_dropout threshold lgamma bitwise_not logical_not
    isnan isinf isfinite invert bool long int acos exponential fill zero uniform empty_like
    rand_like randn_like bernoulli hardtanh
"""


@rule(*_ELEMENTWISE.split())
def elementwise(tracer: Tracer, call: Call) -> None:
    """Each number by itself: labels pass."""
    source = source_of(call)
    labels = tracer.labels(source)
    if labels is None:
        return no_labels(tracer, call)
    if call.out.shape != source.shape:
        return tracer.refuse(call, "changes the shape, which")
    tracer.set(call.out, labels)


@rule(
    *(
        "add",
        "sub",
        "subtract",
        "rsub",
        "mul",
        "multiply",
        "div",
        "divide",
        "truediv",
        "floordiv",
        "rdiv",
        "rtruediv",
    ),
    *(
        "true_divide",
        "floor_divide",
        "pow",
        "float_power",
        "maximum",
        "minimum",
        "fmax",
        "fmin",
        "where",
        "clamp",
    ),
    *(
        "clip",
        "clamp_min",
        "clamp_max",
        "addcmul",
        "addcdiv",
        "lerp",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
        "fmod",
    ),
    *(
        "remainder",
        "atan2",
        "logical_and",
        "logical_or",
        "copy",
        "hypot",
        "masked_fill",
        "and",
        "or",
        "xor",
        "mod",
    ),
)
def arithmetic(tracer: Tracer, call: Call) -> None:
    """Operations on several tensors: channels that meet are tied, position by position."""
    tensors = list(tensors_in((call.args, call.kwargs)))
    labelled = [tensor for tensor in tensors if tracer.labels(tensor) is not None]
    if not labelled:
        return no_labels(tracer, call)
    tracer.set(call.out, unite(tracer, tensors, call.out.shape, call.name))


def unite(tracer: Tracer, tensors: list[Tensor], shape: torch.Size, what: str) -> Tensor | None:
    """Tie the channels of operands position by position; None where the result has a fixed size."""
    ledger = tracer.ledger
    small: list[Tensor] = []
    fixed: list[Tensor] = []
    for tensor in tensors:
        labels = tracer.labels(tensor)
        if labels is None:
            fixed.append(tensor)
            continue
        one = tracer.small(labels)
        small.append(one.reshape((1,) * (len(shape) - one.dim()) + tuple(one.shape)))
    spread = {varying(one) for one in small} - {()}
    if len(spread) > 1:
        reason = tracer.here(f"{what} of tensors whose channels are on different axes")
        for one in small:
            ledger.lock(one, reason)
        return None
    axes = next(iter(spread), ())
    for one in small:
        if axes and not varying(one):  # one channel against many
            ledger.lock(one, tracer.here(f"{what} of one channel with many"))
    wide = [one for one in small if varying(one) == axes]
    for one in wide[1:]:
        ledger.union(wide[0], one)
    for tensor in fixed:
        padded = (1,) * (len(shape) - tensor.dim()) + tuple(tensor.shape)
        if any(padded[axis] > 1 for axis in axes) and not _follows(tracer, tensor, len(shape), axes, wide[0]):
            ledger.lock(wide[0], tracer.here(f"{what} with a tensor of fixed size ({tracer.why(tensor)})"))
    return wide[0]


def _follows(tracer: Tracer, tensor: Tensor, dims: int, axes: tuple[int, ...], labels: Tensor) -> bool:
    """Whether a tensor without labels of its own can be cut along: a parameter of several axes, or a constant.

    The parameter's axis that meets the channels becomes a member. A constant is as long as the forward pass makes it:
    a size that is written there as a number shows in the trial.
    """
    if tracer.is_uniform(tensor):
        return True
    found = tracer.origins(tensor)
    if len(axes) != 1 or not found:
        return False
    axis = axes[0] - (dims - tensor.dim())
    own = [(origin.name, origin.axis_along(axis, tensor.shape[axis])) for origin in found]
    if any(at is None for _, at in own) or labels.numel() != tensor.shape[axis]:
        return False
    for name, at in own:
        assert at is not None
        tracer.attach(name, at, labels.reshape(-1), "through")
    return True


@rule(
    *("zeros", "ones", "full", "empty", "rand", "randn", "randint", "normal"),
    *("new_zeros", "new_ones", "new_full", "new_empty"),
)
def constant(tracer: Tracer, call: Call) -> None:
    """Tensors of one kind of number, as long as the forward pass makes them."""
    if call.name == "normal" and isinstance(source_of(call), Tensor):
        return elementwise(tracer, call)
    tracer.set(call.out, None, tracer.here("a constant"))
    return tracer.set_uniform(call.out)


@rule("glu")
def glu(tracer: Tracer, call: Call) -> None:
    """One half gates the other: over channels, both halves lose the same offsets."""
    source = source_of(call)
    labels = tracer.labels(source)
    if labels is None:
        return no_labels(tracer, call)
    dim = int(call.get(1, "dim", -1)) % source.dim()
    small = tracer.small(labels)
    if dim in varying(small):
        if len(varying(small)) > 1:
            return tracer.refuse(call, "joins channels on different axes, which")
        half = small.shape[dim] // 2
        first = small.narrow(dim, 0, half)
        tracer.ledger.union(first, small.narrow(dim, half, half))
        small = first
    elif source.shape[dim] == 2:
        return tracer.refuse(call, "joins two channels")
    tracer.set(call.out, small.expand(call.out.shape))


@rule("softmax", "log_softmax", "softmin", "normalize", "gumbel_softmax", "cumsum", "cumprod", "sort", "argsort")
def along_an_axis(tracer: Tracer, call: Call) -> None:
    """Operations along one axis that keep the shape: fine unless it is the channel axis."""
    source = source_of(call)
    labels = tracer.labels(source)
    if labels is None:
        return no_labels(tracer, call)
    place = {"normalize": 2, "gumbel_softmax": 4}.get(call.name, 1)
    dim = call.get(place, "dim", 1 if call.name == "normalize" else -1)
    small = tracer.small(labels)
    outs = list(tensors_in(call.out))
    blocked = not isinstance(dim, int) or dim % source.dim() in varying(small) or not varying(small)
    if blocked or any(out.shape != source.shape for out in outs):
        return tracer.refuse(call, "runs over channels")
    for out in outs:
        tracer.set(out, small.expand(out.shape))


# Pooling and reductions


@rule(
    *(
        "max_pool1d",
        "max_pool2d",
        "max_pool3d",
        "avg_pool1d",
        "avg_pool2d",
        "avg_pool3d",
        "lp_pool1d",
        "lp_pool2d",
    ),
    *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d"),
    *("adaptive_max_pool2d", "adaptive_max_pool3d", "max_pool1d_with_indices", "max_pool2d_with_indices"),
    *("max_pool3d_with_indices", "adaptive_max_pool1d_with_indices", "adaptive_max_pool2d_with_indices"),
    *("adaptive_max_pool3d_with_indices", "interpolate", "upsample", "upsample_nearest", "upsample_bilinear"),
)
def spatial(tracer: Tracer, call: Call) -> None:
    """Operations on the trailing axes, channel by channel."""
    source = source_of(call)
    labels = tracer.labels(source)
    if labels is None:
        return no_labels(tracer, call)
    digits = [int(letter) for letter in call.name if letter.isdigit()]
    trailing = digits[0] if digits else source.dim() - 2
    small = tracer.small(labels)
    if any(axis >= source.dim() - trailing for axis in varying(small)):
        return tracer.refuse(call, "pools over channels")
    for out in tensors_in(call.out):
        tracer.set(out, small.expand(out.shape))


@rule(
    "mean",
    "sum",
    "amax",
    "amin",
    "max",
    "min",
    "var",
    "std",
    "norm",
    "logsumexp",
    "median",
    "prod",
    "any",
    "all",
)
def reduction(tracer: Tracer, call: Call) -> None:
    """Sums, means and extrema: labels pass along the axes that stay; over channels they are refused."""
    source = source_of(call)
    labels = tracer.labels(source)
    other = call.get(1, "other")
    if isinstance(other, Tensor):
        return arithmetic(tracer, call)  # torch.max(a, b)
    if labels is None:
        return no_labels(tracer, call)
    dim = call.kwargs.get("dim", call.args[2] if call.name == "norm" and len(call.args) > 2 else call.get(1, "dim"))
    if call.name == "norm" and "dim" not in call.kwargs and len(call.args) < 3:
        dim = None
    small = tracer.small(labels)
    if dim is None or isinstance(dim, bool):
        return tracer.refuse(call, "reduces over channels")
    dims = sorted({int(d) % source.dim() for d in ([dim] if isinstance(dim, int) else dim)})
    if not dims:
        dims = list(range(source.dim()))
    if any(d in varying(small) for d in dims) or (not varying(small) and 1 in dims):
        return tracer.refuse(call, "reduces over channels")
    kept = small
    for out in tensors_in(call.out):
        if out.dim() != source.dim():
            kept = small.squeeze(dims)
        tracer.set(out, kept.expand(out.shape))
