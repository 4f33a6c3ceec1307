"""What a model is made of: output shapes, parameters, multiply-accumulates and receptive fields.

`summarize` runs a copy of the model on one image without values (PyTorch's `meta` device) and watches every
ATen operation, so that functional calls and branches count as much as modules do.

Receptive fields follow Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural Networks",
Distill 2019: a kernel of k positions, dilated by d, widens a field of size r and jump j (input pixels between
neighbouring outputs) to r + (k - 1) d j, and a stride of s turns j into j s. Conventions:

- Sizes are nominal: borders do not cut them, so that they may exceed the image.
- Where branches meet, the largest field counts; branches are taken to be centred on each other.
- A sum, mean, maximum or matrix product over positions (global pooling, flatten then linear, attention) sees
  all of them. What has seen the whole image stays at that size.
- Normalisation and softmax count as pointwise, whatever their statistics are taken over.
- Writes into slices of a tensor and lookups by computed indices are not followed.
"""

from __future__ import annotations

import copy
import dataclasses
import html
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakTensorKeyDictionary

from velodrome.errors import ConfigError

ROOT = "(model)"
BYTES_PER_FLOAT32 = 4
BYTES_PER_MB = 1e6

Pixels = int | float | tuple[int | float, ...] | None


@dataclass(frozen=True)
class Layer:
    """One call of one module.

    Attributes:
        name: path of the module in the model; "(model)" for the model itself.
        type: class name of the module.
        output_shape: shape of its (first) output without the batch dimension.
        params: number of its own parameters that no earlier row has counted. Those of modules inside it that
            never ran as modules (such as `out_proj` of `nn.MultiheadAttention`) are included.
        trainable_params: those of them that require gradients.
        macs: multiply-accumulates of its convolutions and matrix products, for one image.
        receptive_field: input pixels that one output position sees: an int where it is the same in every
            direction, else one per spatial dimension; None where the output does not depend on positions.
        stride: input pixels between neighbouring output positions, by the same convention; below 1 where
            the output is finer than the input.
    """

    name: str
    type: str
    output_shape: tuple[int, ...]
    params: int
    trainable_params: int
    macs: int
    receptive_field: int | tuple[int, ...] | None
    stride: Pixels


@dataclass(frozen=True)
class Totals:
    """Sums over the whole model.

    Attributes:
        params: number of parameters, shared ones counted once.
        trainable_params: those that require gradients.
        other_params: those that do not.
        buffers: number of values in buffers, such as running statistics.
        macs: multiply-accumulates of convolutions and matrix products, for one image.
        params_mb: size of the parameters as they are stored, in 10^6 bytes.
        activations_mb: size of all layers' outputs for one image in float32, in 10^6 bytes.
        receptive_field: that of the model's (first) output.
    """

    params: int
    trainable_params: int
    other_params: int
    buffers: int
    macs: int
    params_mb: float
    activations_mb: float
    receptive_field: int | tuple[int, ...] | None


@dataclass(frozen=True)
class Summary:
    """The layers of a model in the order in which they finish, and their totals.

    Attributes:
        model: class name of the model.
        input_shape: shape of one input without the batch dimension.
        layers: one row for each call of a module that has no sub-modules, owns parameters or does
            multiply-accumulates in its own `forward`.
        totals: sums over the model.
    """

    model: str
    input_shape: tuple[int, ...]
    layers: tuple[Layer, ...]
    totals: Totals

    def to_dict(self) -> dict[str, Any]:
        """The summary as JSON has it: `{"layers": [{...}], "totals": {...}}`, lists in place of tuples."""
        layers = [_with_lists(dataclasses.asdict(layer)) for layer in self.layers]
        return {"layers": layers, "totals": _with_lists(dataclasses.asdict(self.totals))}

    def __str__(self) -> str:
        rows = [_HEADINGS, *(_cells(layer) for layer in self.layers)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
        lines = [_aligned(row, widths) for row in rows]
        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        totals = [f"{label:<20}{value}" for label, value in _total_cells(self.totals)]
        title = f"{self.model}, input {_text(self.input_shape)}"
        return "\n".join([title, rule, lines[0], rule, *lines[1:], rule, *totals])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in _HEADINGS)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(layer)) + "</tr>\n"
            for layer in self.layers
        )
        totals = "<br>\n".join(html.escape(f"{label}: {value}") for label, value in _total_cells(self.totals))
        title = html.escape(f"{self.model}, input {_text(self.input_shape)}")
        return (
            f"<table>\n<caption>{title}</caption>\n<thead><tr>{head}</tr></thead>\n"
            f"<tbody>\n{body}</tbody>\n</table>\n<p>{totals}</p>"
        )


def summarize(model: nn.Module, input_shape: tuple[int, ...]) -> Summary:
    """Describe any model that takes one float tensor.

    The model is left as it is: a copy of it, in evaluation mode and without its hooks, runs on one input, on
    the `meta` device, or with real zeros on the CPU where the model needs values. Random state stays.

    Args:
        model: any module whose `forward` takes one tensor of shape (1, *input_shape).
        input_shape: shape of one input without the batch dimension, channels first, e.g. (3, 32, 32). All
            dimensions after the channels count as spatial.

    Returns:
        The summary, for a batch of one.

    Raises:
        ConfigError: the model cannot be copied, or fails on an input of this shape.
    """
    shape = tuple(input_shape)
    if not shape or any(size < 1 for size in shape):
        raise ConfigError(
            f"input_shape = {shape}, but it must be one or more positive sizes.",
            "Give channels first and no batch, such as (3, 32, 32).",
        )
    try:
        recorder = _record(model, shape, torch.device("meta"))
    except Exception:  # whatever the model's code raises without values, it may not raise with them
        try:
            recorder = _record(model, shape, torch.device("cpu"))
        except Exception as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise ConfigError(
                f"{type(model).__name__} cannot be summarized for one input of shape {_text(shape)}: "
                f"{type(error).__name__}: {reason}.",
                "Give the shape that the model was built for, channels first and without the batch.",
            ) from error
    layers = recorder.layers()
    return Summary(type(model).__name__, shape, layers, recorder.totals(layers))


@torch.inference_mode(False)
def _record(model: nn.Module, shape: tuple[int, ...], device: torch.device) -> _Recorder:
    """Run a copy of `model` on zeros of shape (1, *shape) and watch it.

    Outside inference mode, in which PyTorch does not take composite operations apart.
    """
    duplicate = _duplicate(model, device)
    parameters = (value for value in duplicate.parameters() if value.is_floating_point())
    first = next(parameters, None)
    image = torch.zeros((1, *shape), dtype=torch.float32 if first is None else first.dtype, device=device)
    recorder = _Recorder(duplicate, image)
    # The plain attention kernel, because the fused ones hide their matrix products.
    with torch.random.fork_rng(devices=[]), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), recorder:
        duplicate(image)
    return recorder


def _duplicate(model: nn.Module, device: torch.device) -> nn.Module:
    """A copy on `device`, in evaluation mode and without hooks; on `meta`, no value is copied at all."""
    memo: dict[int, Any] = {}
    attributes = (value for module in model.modules() for value in vars(module).values())
    plain = [
        value for value in attributes if isinstance(value, Tensor)
    ]  # deepcopy refuses those with a graph
    for tensor in (*plain, *model.parameters(), *model.buffers()):
        data = tensor.detach().to(device, copy=True)
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(data, requires_grad=tensor.requires_grad) if is_parameter else data
    duplicate = copy.deepcopy(model, memo).eval()
    for module in duplicate.modules():
        # A user's hooks may write to the user's own lists, which copying does not copy.
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
        module._backward_hooks.clear()
        module._backward_pre_hooks.clear()
    return duplicate


@dataclass(eq=False)
class _Call:
    """One call of one module: what it does itself, not in its sub-modules."""

    name: str
    module: nn.Module
    macs: int = 0
    shape: tuple[int, ...] = ()
    values: int = 0  # elements in all of its outputs
    seen: _Field | None = None


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation of one forward pass, and which module it belongs to."""

    def __init__(self, model: nn.Module, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model = model
        self.fields = WeakTensorKeyDictionary()  # tensor -> _Field
        self.fields[image] = _Field.of_input(image.shape)
        self.running: list[_Call] = []
        self.finished: list[_Call] = []
        for name, module in model.named_modules():
            module.register_forward_pre_hook(self._enter(name or ROOT))
            module.register_forward_hook(self._leave)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        count_flops = flop_registry.get(func.overloadpacket)
        if count_flops is not None and self.running:
            self.running[-1].macs += count_flops(*args, **kwargs, out_val=out) // 2
        names = [argument.name for argument in func._schema.arguments]
        operation = _Operation(func.overloadpacket.__name__, dict(zip(names, args, strict=False)) | kwargs)
        inputs = [(tuple(x.shape), self._seen(x)) for x in _tensors((args, kwargs))]
        if any(seen is not None for _, seen in inputs):
            for result in _tensors(out):
                self.fields[result] = _propagate(operation, inputs, tuple(result.shape))
        return out

    def _seen(self, tensor: Tensor) -> _Field | None:
        seen: _Field | None = self.fields.get(tensor)  # type: ignore[no-untyped-call]
        return seen

    def _enter(self, name: str) -> Any:
        def enter(module: nn.Module, _inputs: Any) -> None:
            self.running.append(_Call(name, module))

        return enter

    def _leave(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        call = self.running.pop()
        outputs = list(_tensors(output))
        if outputs:
            call.shape = tuple(outputs[0].shape[1:])
            call.values = sum(tensor.numel() for tensor in outputs)
            call.seen = self._seen(outputs[0])
        self.finished.append(call)

    def _owned(self) -> dict[nn.Module, list[nn.Parameter]]:
        """Parameters by the module that ran: its own, and those of modules inside it that did not run."""
        called = {call.name: call.module for call in self.finished}
        owned: dict[nn.Module, list[nn.Parameter]] = {}
        for path, module in self.model.named_modules():
            name = path
            while name and name not in called:
                name = name.rpartition(".")[0]
            owned.setdefault(called[name or ROOT], []).extend(module.parameters(recurse=False))
        return owned

    def _shown(self) -> Iterator[tuple[_Call, list[nn.Parameter]]]:
        owned = self._owned()
        for call in self.finished:
            if call.macs or owned.get(call.module) or not any(call.module.children()):
                yield call, owned.get(call.module, [])

    def layers(self) -> tuple[Layer, ...]:
        """One row a call, each parameter on the first row that has it."""
        counted: set[nn.Parameter] = set()
        rows = []
        for call, owned in self._shown():
            fresh = set(owned) - counted
            counted |= fresh
            seen = call.seen
            size = None if seen is None else seen.rounded_size()
            jump = None if seen is None else seen.rounded_jump()
            params = sum(parameter.numel() for parameter in fresh)
            trainable = sum(parameter.numel() for parameter in fresh if parameter.requires_grad)
            kind = type(call.module).__name__
            rows.append(Layer(call.name, kind, call.shape, params, trainable, call.macs, size, jump))
        return tuple(rows)

    def totals(self, layers: Sequence[Layer]) -> Totals:
        """Sums over the rows and over what the model owns."""
        parameters = list(self.model.parameters())
        params = sum(parameter.numel() for parameter in parameters)
        trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        stored = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
        values = sum(call.values for call, _ in self._shown())
        output = self.finished[-1].seen
        return Totals(
            params=params,
            trainable_params=trainable,
            other_params=params - trainable,
            buffers=sum(buffer.numel() for buffer in self.model.buffers()),
            macs=sum(layer.macs for layer in layers),
            params_mb=stored / BYTES_PER_MB,
            activations_mb=values * BYTES_PER_FLOAT32 / BYTES_PER_MB,
            receptive_field=None if output is None else output.rounded_size(),
        )


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists and mappings, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)


_HEADINGS = ("Layer", "Type", "Output shape", "Params", "MACs", "Receptive field", "Stride")
_TEXT_COLUMNS = 3  # the columns before the numbers


def _text(value: Pixels) -> str:
    if value is None:
        return "-"
    return " x ".join(map(str, value)) if isinstance(value, tuple) else f"{value:,}"


def _cells(layer: Layer) -> tuple[str, ...]:
    numbers = (f"{layer.params:,}", f"{layer.macs:,}", _text(layer.receptive_field), _text(layer.stride))
    return (layer.name, layer.type, _text(layer.output_shape), *numbers)


def _total_cells(totals: Totals) -> list[tuple[str, str]]:
    return [
        ("Parameters", f"{totals.params:,} ({totals.params_mb:.2f} MB)"),
        ("  trainable", f"{totals.trainable_params:,}"),
        ("  other", f"{totals.other_params:,}"),
        ("Buffers", f"{totals.buffers:,}"),
        ("MACs per image", f"{totals.macs:,}"),
        ("Activations", f"{totals.activations_mb:.2f} MB per image in float32"),
        ("Receptive field", _text(totals.receptive_field)),
    ]


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [
        cell.ljust(width) if column < _TEXT_COLUMNS else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()


def _with_lists(record: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in record.items()}


# Receptive field arithmetic. A tensor's dimensions are described as row-major products of factors, each of
# which knows how far apart in the image its positions lie, so that views and permutations can be followed.


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
class _Field:
    """What every element of one tensor sees, per spatial dimension of the image."""

    size: list[float]
    jump: list[float]
    whole: list[bool]  # has seen the whole image: no longer grows
    dims: list[tuple[_Factor, ...]] = field(default_factory=list)

    @classmethod
    def of_input(cls, shape: Sequence[int]) -> _Field:
        """The field of the image itself, of shape (1, C, *spatial)."""
        axes = len(shape) - 2
        dims: list[tuple[_Factor, ...]] = [(_Factor(size),) for size in shape[:2]]
        dims += [(_even(size, axis, 1.0),) for axis, size in enumerate(shape[2:])]
        return cls([1.0] * axes, [1.0] * axes, [False] * axes, dims)

    @classmethod
    def joined(cls, parts: Sequence[_Field], dims: list[tuple[_Factor, ...]]) -> _Field:
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

    def copy(self) -> _Field:
        return _Field(list(self.size), list(self.jump), list(self.whole), list(self.dims))

    def positions(self, axis: int) -> int:
        """Number of different positions along `axis` that the tensor holds."""
        factors = (factor for dim in self.dims for factor in dim)
        return math.prod(f.size for f in factors if any(step.axis == axis for step in f.steps))

    def grow(self, axis: int, pixels: float) -> None:
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


class _Operation(NamedTuple):
    """One ATen call: its name without namespace and overload, and its arguments by name."""

    name: str
    args: dict[str, Any]


_Inputs = list[tuple[tuple[int, ...], _Field | None]]  # shape and field of every tensor among the arguments
_Shape = tuple[int, ...]

_VIEWS = {"view", "_unsafe_view", "_reshape_alias", "reshape", "squeeze", "unsqueeze"}
_PERMUTATIONS = {"permute", "transpose", "t"}
_POOLS = {"max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool1d", "avg_pool2d", "avg_pool3d"}
_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm"}
_REDUCTIONS = {"mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "prod"}
_REDUCTIONS |= {"logsumexp", "linalg_vector_norm", "norm", "argmax", "argmin", "median"}
# Further input positions, in each direction, that one output position of an interpolation reads.
_INTERPOLATIONS = {"nearest": 0, "linear": 1, "bilinear": 1, "trilinear": 1, "bicubic": 3}


def _propagate(  # noqa: PLR0911  (one return for each kind of operation)
    operation: _Operation, inputs: _Inputs, shape: _Shape
) -> _Field | None:
    """The field of a result of `shape`."""
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


def _window(source: _Field, shape: _Shape, windows: Mapping[int, tuple[float, float]]) -> _Field:
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


def _convolution(source: _Field, args: dict[str, Any], shape: _Shape) -> _Field:
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


def _pool(source: _Field, args: dict[str, Any], shape: _Shape) -> _Field:
    kernel = args["kernel_size"]
    count = len(kernel)
    strides = _tuple(args.get("stride") or kernel, count)
    dilations = _tuple(args.get("dilation", 1), count)
    sizes = zip(kernel, strides, dilations, strict=True)
    first = len(shape) - count
    return _window(source, shape, {first + i: ((k - 1) * d, s) for i, (k, s, d) in enumerate(sizes)})


def _adaptive_pool(source: _Field, before: _Shape, shape: _Shape) -> _Field:
    windows: dict[int, tuple[float, float]] = {}
    for dim, (old, new) in enumerate(zip(before, shape, strict=True)):
        if any(factor.steps for factor in source.dims[dim]):
            widest = max(-(-(i + 1) * old // new) - i * old // new for i in range(new))
            windows[dim] = (widest - 1, old / new)
    return _window(source, shape, windows)


def _resample(source: _Field, operation: _Operation, before: _Shape, shape: _Shape) -> _Field:
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


def _reduction(source: _Field, args: dict[str, Any]) -> _Field:
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


def _product(inputs: _Inputs, shape: _Shape) -> _Field:
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
    return _Field.joined(parts, dims)


def _view(source: _Field, shape: _Shape) -> _Field:
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


def _permutation(source: _Field, args: dict[str, Any]) -> _Field:
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


def _pointwise(inputs: _Inputs, shape: _Shape) -> _Field:
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
    return _Field.joined(parts, dims)


def _stack(inputs: _Inputs, dim: int, shape: _Shape) -> _Field:
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


def _scattered(parts: Sequence[_Field], shape: _Shape) -> _Field:
    """Where positions can no longer be followed: any dimension may hold all of them."""
    steps = {step for part in parts for dim in part.dims for factor in dim for step in factor.steps}
    widest = {step.axis: step for step in sorted(steps, key=lambda step: step.span)}
    mixed = tuple(widest.values())
    dims: list[tuple[_Factor, ...]] = [(_Factor(size, mixed if size > 1 else ()),) for size in shape]
    return _Field.joined(parts, dims)


def _same(values: list[Any]) -> Any:
    """One value where all are equal, a tuple where not, None where there are none."""
    if not values:
        return None
    return values[0] if len(set(values)) == 1 else tuple(values)


def _tuple(value: int | Sequence[int], count: int) -> tuple[int, ...]:
    sizes = (value,) if isinstance(value, int) else tuple(value)
    return sizes * count if len(sizes) == 1 else sizes
