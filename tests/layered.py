"""A model whose layers are called in all ways, and hooks that let a probe visit the layers of such a model."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from checkers import assert_same
from fusum.engine.probe import Mode, Probe, current, probing
from models import noise

Args = tuple[Tensor, ...]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.act = nn.Linear(4, 4), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.a(x)) + x


class Halves(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = x.chunk(2, dim=1)
        return first * 2, second * 3


class Merge(nn.Module):
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.cat([first * 0.5, second], 1)


class Detached(nn.Module):
    """Computes something where no gradients are recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = self.inner(x).relu()
        return x * scale


class Net(nn.Module):
    """Layers in all the ways in which they may be called."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks, self.same = nn.Linear(4, 4), nn.ModuleList([Block(), Block()]), nn.Identity()
        self.halves, self.merge, self.drop = Halves(), Merge(), nn.Dropout(0.5)
        self.lstm, self.mha = nn.LSTM(4, 4, batch_first=True), nn.MultiheadAttention(4, 2, batch_first=True)
        self.head, self.unused, self.never = nn.Sequential(nn.Linear(4, 3), nn.Tanh()), nn.Linear(4, 4), nn.Linear(4, 4)
        self.bag, self.pool = nn.EmbeddingBag(3, 4), nn.AdaptiveMaxPool1d(2)
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Tensor, shift: Tensor) -> dict[str, Any]:
        x = self.stem(self.stem(x) + shift)
        for block in self.blocks:
            x = block(x)
        x = self.drop(self.same(x))
        self.unused(x)
        self.count += 1
        x = self.merge(*self.halves(x))
        out, (h, c) = self.lstm(x.unsqueeze(1))
        mixed, weights = self.mha(out, out + 1, out - 1)
        # Not h[0]: torch 2.11 exports h with a dimension too many.
        x = mixed.squeeze(1) + h.reshape(-1, 4) + weights.sum((1, 2))[:, None] + self.pool(x).sum(1, keepdim=True)
        x = x + self.bag((x.detach() > 0).long())
        return {"y": self.head(x), "rest": (c, None, x.shape[0])}


class Counts(nn.Module):
    """Returns its input; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x


class Clears(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x[:, 0] = 0
        return x


class Best(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return x.max(1)


class Makes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ones(6, 4)


class Picks(nn.Module):
    """Returns rows; how many, depends on their values."""

    def forward(self, x: Tensor) -> Tensor:
        return x[x[:, 0] > 0]


class Around(nn.Module):
    """A layer, called "layer", in a function of it, a tensor and this."""

    def __init__(self, layer: nn.Module, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.layer, self.call, self.later = layer, call, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.layer, self.later(x), self)


def arguments(rows: int = 5, seed: int = 0) -> Args:
    return noise(rows, 4, seed=seed), noise(rows, 4, seed=seed + 100)


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def exported(model: nn.Module, args: Args, **settings: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(model, args, **settings)


def decomposed(program: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return program.run_decompositions()


def loaded(program: Any) -> Any:
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file)


def plain(program: Any) -> Any:
    return program


def simple(model: nn.Module, form: Callable[[Any], Any] = plain) -> GraphModule:
    """The exported program of a model that takes [6, 4]."""
    return form(exported(model, (noise(6, 4),))).module()


class Hooks:
    """The same for the module that was exported."""

    def __init__(self, model: nn.Module, names: tuple[str, ...], of_input: bool) -> None:
        self.model, self.names, self.of_input = model, names, of_input

    @contextmanager
    def hooked(self) -> Iterator[None]:
        handles = []
        for layer, name in enumerate(self.names):

            def visit(value: Any, layer: int = layer) -> Any:
                leaves, spec = pytree.tree_flatten(value)
                visited = iter(current().visit(layer, tensors(leaves)))
                return spec.unflatten([next(visited) if isinstance(leaf, Tensor) else leaf for leaf in leaves])

            module = self.model.get_submodule(name)
            if self.of_input:
                handles.append(module.register_forward_pre_hook(lambda _, args, visit=visit: visit(args)))
            else:
                handles.append(module.register_forward_hook(lambda _, args, out, visit=visit: visit(out)))
        yield
        for handle in handles:
            handle.remove()

    def run(self, args: Args, mode: Mode, stop: bool) -> Any:
        with self.hooked():
            return self.model(*args)


class Sites(Protocol):
    """What Hooks and those of other formats have in common."""

    def run(self, args: Args, mode: Mode, stop: bool) -> Any: ...


def run(sites: Sites, mode: Mode, args: Args, values: Any = (), stop: bool = False) -> tuple[Any, Probe]:
    torch.manual_seed(3)
    probe = Probe(mode, values)
    with probing(probe), torch.no_grad() if mode is Mode.WATCH else torch.enable_grad():
        return sites.run(args, mode, stop), probe


def tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def assert_alike(found: Any, expected: Any) -> None:
    assert pytree.tree_structure(found) == pytree.tree_structure(expected)
    for ours, other in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
        assert_same(ours, other) if isinstance(ours, Tensor) else None
        assert isinstance(ours, Tensor) or ours == other


def other_values(probe: Probe, layers: int) -> list[list[list[Tensor]]]:
    """Values for GIVE: not what the layers computed."""
    calls = [[kept for layer, kept in probe.visits if layer == i] for i in range(layers)]
    return [[[(t * 0.7).cos() for t in call] for call in of_layer] for of_layer in calls]


class Executed(TorchDispatchMode):
    """The operators that are executed."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func.overloadpacket))
        return func(*args, **(kwargs or {}))


def executed(sites: Sites, mode: Mode, args: Args, values: Any = (), stop: bool = False) -> list[str]:
    with Executed() as ran:
        run(sites, mode, args, values, stop)
    return ran.names
