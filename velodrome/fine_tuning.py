"""Starting from the weights of another run, with a new classifier where the classes are others."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from velodrome.config import Config, ModelSection, made_of, override
from velodrome.errors import ConfigError
from velodrome.run.folder import open_run
from velodrome.run.weights_header import read_header

if TYPE_CHECKING:
    from torch import Tensor, nn

# What a network computes, and so may be another than in the run that it starts from.
FREE = ("dropout", "ghost_batch", "init")


def start_from(network: nn.Module, model: ModelSection, classes: Sequence[str]) -> None:
    """Give a new network the weights of the run `model.init`.

    The classifier keeps its new weights, unless the run has just the same classes in the same order.

    Args:
        network: made by `build_model` from `model`; changed in place.
        model: which network, and where its weights come from.
        classes: the names of the classes to come.

    Raises:
        RunError: there is no such run, or it has no weights yet.
        ConfigError: the run has another network.
    """
    # Who wants to know the network of a run alone has no need of torch.
    from velodrome.run.checkpoint import load_weights  # noqa: PLC0415
    from velodrome.training.optim import classifier_of  # noqa: PLC0415

    assert model.init is not None
    tensors, about = load_weights(open_run(model.init).model)
    _check_same_network(model, about)
    own = network.state_dict()
    head = classifier_of(network)
    kept = set() if tuple(about["classes"]) == tuple(classes) else _names_of(network, head)
    chosen = {name: tensor for name, tensor in tensors.items() if name not in kept}
    network.load_state_dict({**own, **chosen})


def network_of(path: Path) -> dict[str, Any]:
    """The settings of the network that a run has trained, as those of a run that starts from it.

    Reads no weights.

    Raises:
        RunError: there is no such run, or it has no weights yet.
    """
    about = read_header(open_run(path).model)
    return {key: value for key, value in about["model"].items() if key not in FREE}


def _check_same_network(model: ModelSection, about: Mapping[str, Any]) -> None:
    before = made_of(override(Config(), about["model"]).model)
    now = made_of(model)
    for item in dataclasses.fields(ModelSection):
        wanted, given = getattr(before, item.name), getattr(now, item.name)
        if item.name not in FREE and wanted != given:
            raise ConfigError(
                f"{item.name} is {given!r}, but the run {model.init} to start from has {wanted!r}.",
                f"Use --{item.name.replace('_', '-')} {wanted}, or leave out --init.",
            )


def _names_of(network: nn.Module, weight: Tensor | None) -> set[str]:
    return {name for name, value in network.named_parameters() if value is weight}
