"""The record of what one workload is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from torch import Tensor, nn

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Workload:
    """One model, one method and its arguments.

    Args:
        name: as printed and as given to `--only`.
        model: builds the model; see models.py.
        inputs: builds the inputs for a device.
        method: builds the method from a library (`fusum.attr` or `captum.attr`) and the model.
        ideal: the same work by hand; see the files named ideal.
        arguments: keyword arguments of `attribute` and of `ideal`.
        settings: captum's chunk settings to choose the best from, beside its default.
        rows: the ideal's chunks to choose the best from.
        tensors: further arguments that hold tensors, built for a device.
        own: arguments of fusum alone, which captum does not have: then results are compared with the ideal's.
        scripted: whether the model is TorchScript.
        over_best: captum's time at its best setting over fusum's, to reach.
        over_default: the same for captum's default.
        near_ideal: fusum's time over the ideal loop's, not to pass.
    """

    name: str
    model: Callable[[], nn.Module]
    inputs: Callable[[str], Tensors]
    method: Callable[[ModuleType, nn.Module], Any]
    ideal: Callable[..., Tensors]
    arguments: Mapping[str, Any]
    settings: tuple[Mapping[str, int], ...]
    rows: tuple[int, ...]
    tensors: Mapping[str, Callable[[str], Tensor]] = field(default_factory=dict)
    own: Mapping[str, Any] = field(default_factory=dict)
    scripted: bool = False
    over_best: float | None = None
    over_default: float | None = None
    near_ideal: float = 1.15

    def keywords(self, device: str) -> dict[str, Any]:
        """All keyword arguments, with tensors on the device."""
        return {**self.arguments, **{name: make(device) for name, make in self.tensors.items()}}


def chunks(argument: str, *sizes: int) -> tuple[Mapping[str, int], ...]:
    """One setting for each value of captum's chunk argument."""
    return tuple({argument: size} for size in sizes)
