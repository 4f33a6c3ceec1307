"""Receptive fields, followed through ATen operations one at a time.

The method is that of Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural Networks",
Distill 2019: a kernel of k positions, dilated by d, widens a field of size r and jump j (input pixels between
neighbouring outputs) to r + (k - 1) d j, and a stride of s turns j into j s. A tensor's dimensions are
described as row-major products of factors, each of which knows how far apart in the image its positions lie,
so that views and permutations can be followed. Conventions:

- Sizes are nominal: borders do not cut them, so that they may exceed the image.
- Where branches meet, the largest field counts; branches are taken to be centred on each other.
- A sum, mean, maximum or matrix product over positions (global pooling, flatten then linear, attention) sees
  all of them. What has seen the whole image stays at that size.
- Normalisation and softmax count as pointwise, whatever their statistics are taken over.
- Writes into slices of a tensor and lookups by computed indices are not followed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class _Step(NamedTuple):
    """Moving along a factor moves along spatial dimension `axis` of the image."""

    axis: int
    jump: float  # pixels from one position to the next
    span: float  # pixels from the first position to the last


class _Factor(NamedTuple):
    size: int
    steps: tuple[_Step, ...] = ()  # none: channels or batch; several: positions mixed beyond telling apart


def _even(size: int, axis: int, jump: float) -> _Factor:
    return _Factor(size, (_Step(axis, jump, (size - 1) * jump),))


@dataclass
class Field:
    """What every element of one tensor sees, per spatial dimension of the image."""

    size: list[float]
    jump: list[float]
    whole: list[bool]  # has seen the whole image: no longer grows
    dims: list[tuple[_Factor, ...]]

    @classmethod
    def of_input(cls, shape: Sequence[int]) -> Field:
        """The field of the image itself, of shape (1, C, *spatial)."""
        axes = len(shape) - 2
        dims: list[tuple[_Factor, ...]] = [(_Factor(size),) for size in shape[:2]]
        dims += [(_even(size, axis, 1.0),) for axis, size in enumerate(shape[2:])]
        return cls([1.0] * axes, [1.0] * axes, [False] * axes, dims)

    @classmethod
    def joined(cls, parts: Sequence[Field], dims: list[tuple[_Factor, ...]]) -> Field:
        """The field of a combination of tensors: the largest, at the pace of the finest map."""
        axes = range(len(parts[0].size))
        finest = [max(parts, key=lambda part: (part.positions(axis), part.jump[axis])) for axis in axes]
        return cls(
            [max(part.size[axis] for part in parts) for axis in axes],
            [finest[axis].jump[axis] for axis in axes],
            [any(part.whole[axis] for part in parts) for axis in axes],
            dims,
        )

    def rounded_size(self) -> Any:
        """Whole pixels, rounded up; rounding first to 6 decimals removes the error of thirds and the like."""
        return _same([math.ceil(round(size, 6)) for size in self.size])

    def rounded_jump(self) -> Any:
        """Pixels, as integers where they are."""
        return _same([int(jump) if jump == int(jump) else round(jump, 6) for jump in self.jump])

    def copy(self) -> Field:
        """A field that can change on its own."""
        return Field(list(self.size), list(self.jump), list(self.whole), list(self.dims))

    def positions(self, axis: int) -> int:
        """Number of different positions along `axis` that the tensor holds."""
        factors = (factor for dim in self.dims for factor in dim)
        return math.prod(f.size for f in factors if any(step.axis == axis for step in f.steps))

    def grow(self, axis: int, pixels: float) -> None:
        """See `pixels` more along `axis`."""
        if not self.whole[axis]:
            self.size[axis] += pixels

    def contract(self, dim: int) -> None:
        """See all positions along `dim` at once, as a sum over it does; it stays, without steps."""
        jumps: dict[int, float] = {}
        for factor in self.dims[dim]:
            for step in factor.steps:
                self.grow(step.axis, step.span)
                jumps[step.axis] = max(jumps.get(step.axis, 0.0), step.span + step.jump)
        self.dims[dim] = ()
        for axis, jump in jumps.items():
            if self.positions(axis) == 1:
                self.whole[axis] = True
                self.jump[axis] = jump


class Operation(NamedTuple):
    """One ATen call: its name without namespace and overload, and its arguments by name."""

    name: str
    args: dict[str, Any]


_Shape = tuple[int, ...]
_Inputs = list[tuple[_Shape, Field | None]]  # shape and field of every tensor among the arguments

_VIEWS = {"view", "_unsafe_view", "_reshape_alias", "reshape", "squeeze", "unsqueeze"}
_PERMUTATIONS = {"permute", "transpose", "t"}
_POOLS = {"max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool1d", "avg_pool2d", "avg_pool3d"}
_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm"}
_REDUCTIONS = {"mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "prod"}
_REDUCTIONS |= {"logsumexp", "linalg_vector_norm", "norm", "argmax", "argmin", "median"}
# Further input positions, in each direction, that one output position of an interpolation reads.
_INTERPOLATIONS = {"nearest": 0, "linear": 1, "bilinear": 1, "trilinear": 1, "bicubic": 3}


def propagate(  # noqa: PLR0911  (one return for each kind of operation)
    operation: Operation, inputs: _Inputs, shape: _Shape
) -> Field:
    """The field of one result of an operation.

    Args:
        operation: the call.
        inputs: shape and field of every tensor among its arguments, in order. A field is None where the
            tensor does not depend on the image; at least one does.
        shape: shape of the result.

    Returns:
        A new field; those of the inputs stay as they are.
    """
    name, args = operation
    if name in _PRODUCTS:
        return _product(inputs, shape)
    if name == "stack":
        return _stack(inputs, args.get("dim", 0) % len(shape), shape)
    (source_shape, source), *others = inputs
    if source is None or any(seen is not None for _, seen in others):
        return _pointwise(inputs, shape)
    if name == "convolution":
        return _convolution(source, args, shape)
    if name in _POOLS:
        return _pool(source, args, shape)
    if "adaptive" in name and "pool" in name:
        return _adaptive_pool(source, source_shape, shape)
    if name.startswith(("upsample_", "_upsample_", "pixel_")):
        return _resample(source, operation, source_shape, shape)
    if name in _REDUCTIONS:
        return _reduction(source, args)
    if name in _VIEWS and math.prod(source_shape) == math.prod(shape):
        return _view(source, shape)
    if name in _PERMUTATIONS:
        return _permutation(source, args)
    if name in {"select", "unbind"}:
        result = source.copy()
        del result.dims[args.get("dim", 0)]
        return result
    result = _pointwise(inputs, shape)
    if name == "slice" and args.get("step", 1) > 1:
        return _window(result, shape, {args.get("dim", 0) % len(shape): (0, args["step"])})
    return result


def _window(source: Field, shape: _Shape, windows: Mapping[int, tuple[float, float]]) -> Field:
    """Slide windows along dimensions: dimension -> (input positions beyond the first, stride)."""
    result = source.copy()
    for dim, (reach, stride) in windows.items():
        factors = result.dims[dim]
        steps = tuple(step for factor in factors for step in factor.steps)
        if len(steps) == 1 and len(factors) == 1:
            axis, jump, _ = steps[0]
            result.grow(axis, reach * jump)
            result.jump[axis] = jump * stride
            result.dims[dim] = (_even(shape[dim], axis, jump * stride),)
            continue
        if reach:  # a window over mixed positions: count all of them
            result.contract(dim)
        result.dims[dim] = (_Factor(shape[dim], steps),)
    return result


def _convolution(source: Field, args: dict[str, Any], shape: _Shape) -> Field:
    weight = args["weight"]
    kernel = tuple(weight.shape[2:])
    strides, dilations = _tuple(args["stride"], len(kernel)), _tuple(args["dilation"], len(kernel))
    first = len(shape) - len(kernel)
    windows: dict[int, tuple[float, float]] = {}
    for i, (k, stride, dilation) in enumerate(zip(kernel, strides, dilations, strict=True)):
        reach = (k - 1) * dilation
        windows[first + i] = (reach // stride, 1 / stride) if args["transposed"] else (reach, stride)
    result = _window(source, shape, windows)
    depthwise = args["groups"] > 1 and weight.shape[:2] == (args["groups"], 1)
    if not depthwise:
        result.contract(first - 1)  # channels, which may hold positions, as in MLP-Mixer
        result.dims[first - 1] = (_Factor(shape[first - 1]),)
    return result


def _pool(source: Field, args: dict[str, Any], shape: _Shape) -> Field:
    kernel = args["kernel_size"]
    count = len(kernel)
    strides = _tuple(args.get("stride") or kernel, count)
    dilations = _tuple(args.get("dilation", 1), count)
    sizes = zip(kernel, strides, dilations, strict=True)
    first = len(shape) - count
    return _window(source, shape, {first + i: ((k - 1) * d, s) for i, (k, s, d) in enumerate(sizes)})


def _adaptive_pool(source: Field, before: _Shape, shape: _Shape) -> Field:
    windows: dict[int, tuple[float, float]] = {}
    for dim, (old, new) in enumerate(zip(before, shape, strict=True)):
        if any(factor.steps for factor in source.dims[dim]):
            widest = max(-(-(i + 1) * old // new) - i * old // new for i in range(new))
            windows[dim] = (widest - 1, old / new)
    return _window(source, shape, windows)


def _resample(source: Field, operation: Operation, before: _Shape, shape: _Shape) -> Field:
    """Interpolation, and the exchange of channels for positions by `nn.PixelShuffle` and its inverse."""
    windows: dict[int, tuple[float, float]] = {}
    for dim, (old, new) in enumerate(zip(before, shape, strict=True)):
        if any(factor.steps for factor in source.dims[dim]):
            kernels = [reach for word, reach in _INTERPOLATIONS.items() if f"_{word}" in operation.name]
            reach = operation.args.get("downscale_factor", 1) - 1 + max(kernels, default=0)
            windows[dim] = (reach, old / new)
    result = _window(source, shape, windows)
    if operation.name.startswith("pixel_"):
        result.dims[-3] = (_Factor(shape[-3]),)
    return result


def _reduction(source: Field, args: dict[str, Any]) -> Field:
    result = source.copy()
    rank = len(result.dims)
    dims = args.get("dim")
    if isinstance(dims, int):
        dims = [dims]
    for dim in sorted({dim % rank for dim in dims or range(rank)}, reverse=True):
        result.contract(dim)
        if not args.get("keepdim", False):
            del result.dims[dim]
    return result


def _product(inputs: _Inputs, shape: _Shape) -> Field:
    """Matrix product of the last two tensors, (..., n, k) with (..., k, m), plus any tensor before them."""
    parts = [seen for _, seen in inputs[:-2] if seen is not None]
    dims: list[tuple[_Factor, ...]] = [(_Factor(size),) for size in shape]
    for (_, seen), summed, kept in ((inputs[-2], -1, -2), (inputs[-1], -2, -1)):
        if seen is None:
            continue
        dims[kept] = seen.dims[kept]
        if len(shape) == 3 and any(factor.steps for factor in seen.dims[0]):
            dims[0] = seen.dims[0]
        part = seen.copy()
        part.contract(summed)
        parts.append(part)
    return Field.joined(parts, dims)


def _view(source: Field, shape: _Shape) -> Field:
    """Deal the factors out anew, in row-major order, splitting those that span two dimensions."""
    pending = [factor for dim in source.dims for factor in dim if factor.size > 1 or factor.steps]
    pending.reverse()
    result = source.copy()
    result.dims = []
    for size in shape:
        taken: list[_Factor] = []
        missing = size
        while missing > 1:
            factor = pending.pop() if pending else _Factor(0)
            if factor.size < 1 or (missing % factor.size and factor.size % missing):  # such as 6 x 4 as 8 x 3
                return _scattered([source], shape)
            if factor.size > missing:
                factor, rest = _split(factor, missing)
                pending.append(rest)
            taken.append(factor)
            missing //= factor.size
        result.dims.append(tuple(taken))
    result.dims[-1:] = [(*result.dims[-1], *reversed(pending))] if shape else []
    return result


def _split(factor: _Factor, major: int) -> tuple[_Factor, _Factor]:
    minor = factor.size // major
    if len(factor.steps) != 1:
        return _Factor(major, factor.steps), _Factor(minor, factor.steps)
    axis, jump, _ = factor.steps[0]
    return _even(major, axis, jump * minor), _even(minor, axis, jump)


def _permutation(source: Field, args: dict[str, Any]) -> Field:
    order = list(range(len(source.dims)))
    if "dims" in args:
        order = list(args["dims"])
    elif "dim0" in args:
        order[args["dim0"]], order[args["dim1"]] = order[args["dim1"]], order[args["dim0"]]
    else:
        order.reverse()
    result = source.copy()
    result.dims = [source.dims[dim] for dim in order]
    return result


def _pointwise(inputs: _Inputs, shape: _Shape) -> Field:
    """Elementwise and broadcasting operations, concatenation, padding, slices, and all that is unknown."""
    rank = len(shape)
    parts = [seen for _, seen in inputs if seen is not None]
    if max(len(before) for before, _ in inputs) != rank:
        return _scattered(parts, shape)
    dims = []
    for dim, size in enumerate(shape):
        held = [part.dims[dim - rank] for part in parts if len(part.dims) >= rank - dim]
        held = [factors for factors in held if any(factor.steps for factor in factors)]
        same = [factors for factors in held if math.prod(factor.size for factor in factors) == size]
        dims.append((same or [_resized(held[0], size) if held else (_Factor(size),)])[0])
    return Field.joined(parts, dims)


def _stack(inputs: _Inputs, dim: int, shape: _Shape) -> Field:
    unsqueezed: _Inputs = []
    for before, seen in inputs:
        part = None if seen is None else seen.copy()
        if part is not None:
            part.dims.insert(dim, ())
        unsqueezed.append(((*before[:dim], 1, *before[dim:]), part))
    return _pointwise(unsqueezed, shape)


def _resized(factors: tuple[_Factor, ...], size: int) -> tuple[_Factor, ...]:
    steps = tuple(step for factor in factors for step in factor.steps)
    if math.prod(factor.size for factor in factors) == 1:  # one position, repeated
        return (_Factor(size),)
    if len(steps) == 1 and len(factors) == 1:
        return (_even(size, steps[0].axis, steps[0].jump),)
    return (_Factor(size, steps),)


def _scattered(parts: Sequence[Field], shape: _Shape) -> Field:
    """Where positions can no longer be followed: any dimension may hold all of them."""
    steps = {step for part in parts for dim in part.dims for factor in dim for step in factor.steps}
    widest = {step.axis: step for step in sorted(steps, key=lambda step: step.span)}
    mixed = tuple(widest.values())
    dims: list[tuple[_Factor, ...]] = [(_Factor(size, mixed if size > 1 else ()),) for size in shape]
    return Field.joined(parts, dims)


def _same(values: list[Any]) -> Any:
    """One value where all are equal, a tuple where not, None where there are none."""
    if not values:
        return None
    return values[0] if len(set(values)) == 1 else tuple(values)


def _tuple(value: int | Sequence[int], count: int) -> tuple[int, ...]:
    sizes = (value,) if isinstance(value, int) else tuple(value)
    return sizes * count if len(sizes) == 1 else sizes
