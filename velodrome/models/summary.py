"""What a model is made of: output shapes, parameters, multiply-accumulates and receptive fields.

`summarize` runs a copy of the model on one image without values (PyTorch's `meta` device) and watches every
ATen operation, so that functional calls and branches count as much as modules do.

How receptive fields are found, and by which conventions, stands in `velodrome.models.receptive_field`.
"""

from __future__ import annotations

import copy
import dataclasses
import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakTensorKeyDictionary

from velodrome.errors import ConfigError
from velodrome.models.receptive_field import Field, Operation, propagate

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
    # Plain attributes too, because deepcopy refuses tensors with a graph.
    plain = [value for value in attributes if isinstance(value, Tensor)]
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
    seen: Field | None = None


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    """Sees every operation of one forward pass, and which module it belongs to."""

    def __init__(self, model: nn.Module, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.model = model
        self.fields = WeakTensorKeyDictionary()  # tensor -> Field
        self.fields[image] = Field.of_input(image.shape)
        self.running: list[_Call] = []
        self.finished: list[_Call] = []
        for name, module in model.named_modules():
            module.register_forward_pre_hook(partial(self._enter, name or ROOT))
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
        operation = Operation(func.overloadpacket.__name__, dict(zip(names, args, strict=False)) | kwargs)
        inputs = [(tuple(x.shape), self._seen(x)) for x in _tensors((args, kwargs))]
        if any(seen is not None for _, seen in inputs):
            for result in _tensors(out):
                self.fields[result] = propagate(operation, inputs, tuple(result.shape))
        return out

    def _seen(self, tensor: Tensor) -> Field | None:
        seen: Field | None = self.fields.get(tensor)  # type: ignore[no-untyped-call, unused-ignore]
        return seen

    def _enter(self, name: str, module: nn.Module, _inputs: Any) -> None:
        self.running.append(_Call(name, module))

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
