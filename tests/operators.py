"""The table of operators for the rules: one small model each, the operator between linear layers, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from math import prod
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import noise

Body = Callable[..., Tensor]
FEATURES = 5


@dataclass(frozen=True)
class Operator:
    """make builds what runs on the hidden tensor [B, *shape].

    generic: the operator that the warning must name, where the rule for operators without one of their own serves.
    """

    name: str
    shape: tuple[int, ...]
    make: Callable[[], Body]
    generic: str = ""


class Around(nn.Module):
    """A linear layer, the operator on its outputs in their shape, a linear layer."""

    def __init__(self, operator: Operator) -> None:
        super().__init__()
        self.shape = operator.shape
        self.before, self.body = nn.Linear(FEATURES, prod(operator.shape)), operator.make()
        with torch.no_grad():
            self.after = nn.Linear(self.hidden(torch.ones(2, FEATURES)).shape[1], 2)

    def hidden(self, x: Tensor) -> Tensor:
        return self.body(self.before(x).unflatten(1, self.shape)).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.hidden(x))


@cache
def around(name: str) -> nn.Module:
    """The model of this operator; always the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(len(name))
        model = Around(OPERATORS[name])
        for buffer in model.buffers():  # running statistics that are not 0 and 1
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
    return model.double().eval()


def examples(rows: int = 4, seed: int = 0) -> Tensor:
    """[rows, FEATURES] in float64, wide enough to reach both sides of every kink."""
    return 2 * noise(rows, FEATURES, seed=seed).double()


class Picked(nn.Module):
    """The item of body's outputs at the end of path."""

    def __init__(self, body: nn.Module, *path: int) -> None:
        super().__init__()
        self.body, self.path = body, path

    def forward(self, *args: Tensor) -> Tensor:
        out = self.body(*args)
        for place in self.path:
            out = out[place]
        return out


class TimeFirst(nn.Module):
    """body takes and returns [T, B, E]."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.transpose(0, 1)).transpose(0, 1)


class Repeated(nn.Module):
    """body takes its input several times."""

    def __init__(self, body: nn.Module, times: int) -> None:
        super().__init__()
        self.body, self.times = body, times

    def forward(self, x: Tensor) -> Tensor:
        return self.body(*[x] * self.times)


class Unrolled(nn.Module):
    """A cell along the time axis of [B, T, E]; its last state."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return state[0] if isinstance(state, tuple) else state


class Reused(nn.Module):
    """One activation module at two places."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation, self.between = activation, nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.between(self.activation(x)))


class Positions(nn.Module):
    """Embeddings of the positions, added to the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.embedding(torch.arange(3))).tanh()


def positive(x: Tensor) -> Tensor:
    return F.softplus(x) + 0.5


def drawn(module: nn.Module) -> nn.Module:
    """The module with weights that are not 1 and 0."""
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


def later() -> Tensor:
    """[3, 3]: True above the diagonal."""
    return torch.ones(3, 3, dtype=torch.bool).triu(1)


def shifts(x: Tensor) -> Tensor:
    return torch.linspace(-1, 1, 9, dtype=x.dtype).view(3, 3)


def attention(**options: Any) -> nn.Module:
    return Picked(Repeated(drawn(nn.MultiheadAttention(4, 2, **options)), 3), 0)


def encoder_layer(**options: Any) -> nn.Module:
    return nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True, **options)


def recurrent(kind: str, **options: Any) -> nn.Module:
    return Picked(getattr(nn, kind)(4, 3, **options), 0)


def added_in_place(x: Tensor) -> Tensor:
    y = x - 0.1
    y += torch.relu(x)
    y *= 0.5
    return y.tanh()


def written_in_place(x: Tensor) -> Tensor:
    y = x.sin()
    y[:, 1:3] = x[:, :2] ** 2
    return y.exp()


def filled_in_place(x: Tensor) -> Tensor:
    y = torch.zeros(len(x), 4, dtype=x.dtype)
    y[:, 1:] = x[:, :3].exp()
    return y * y


# By the name of the class in torch.nn, on [B, 6].
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    **{name: getattr(nn, name) for name in ("ReLU", "ReLU6", "LeakyReLU", "RReLU", "ELU", "SELU", "SiLU", "Mish")},
    **{name: getattr(nn, name) for name in ("GELU", "Sigmoid", "LogSigmoid", "Tanh", "Softplus", "Softsign")},
    **{name: getattr(nn, name) for name in ("Tanhshrink", "Hardtanh", "Hardswish", "Hardsigmoid", "GLU")},
    "CELU": partial(nn.CELU, alpha=0.7),
    "PReLU": partial(nn.PReLU, num_parameters=6),
    "Softshrink": partial(nn.Softshrink, 0.2),
    "Hardshrink": partial(nn.Hardshrink, 0.2),
    "Threshold": partial(nn.Threshold, 0.1, -0.2),
    "Softmax": partial(nn.Softmax, 1),
    "Softmin": partial(nn.Softmin, 1),
    "LogSoftmax": partial(nn.LogSoftmax, 1),
}
IN_PLACE = ("ReLU", "ReLU6", "LeakyReLU", "ELU", "SELU", "SiLU", "Mish", "Hardtanh", "Hardswish", "Hardsigmoid")

# Functions of [B, 6].
FUNCTIONS: dict[str, Body] = {
    "exp": torch.exp,
    "expm1": torch.expm1,
    "log": lambda x: torch.log(positive(x)),
    "log1p": lambda x: torch.log1p(positive(x)),
    "sqrt": lambda x: torch.sqrt(positive(x)),
    "rsqrt": lambda x: torch.rsqrt(positive(x)),
    "reciprocal": lambda x: torch.reciprocal(positive(x)),
    "number over": lambda x: 2.0 / positive(x),
    "number minus": lambda x: torch.rsub(x.tanh(), 2.0),
    "square": torch.square,
    "pow 2": lambda x: x**2,
    "pow 3": lambda x: x**3,
    "pow -1.5": lambda x: positive(x) ** -1.5,
    "number to the": lambda x: 2.0**x,
    "abs": torch.abs,
    "sign": torch.sign,
    "clamp": lambda x: x.clamp(-0.5, 0.7),
    "clamp_min": lambda x: x.clamp_min(0.1),
    "sin": torch.sin,
    "cos": torch.cos,
    "atan": torch.atan,
    "erf": torch.erf,
    "torch.sigmoid": torch.sigmoid,
    "F.relu": F.relu,
    "torch.relu": torch.relu,
    "Tensor.relu": lambda x: x.relu(),
    "F.relu in place": lambda x: F.relu(x * 2, inplace=True),
    "relu_": lambda x: (x + 1).relu_(),
    "sigmoid_": lambda x: (x + 1).sigmoid_(),
    "mul_": lambda x: (x + 0.5).mul_(x),
    "div_": lambda x: (x + 0.5).div_(positive(x)),
    "in-place addition": added_in_place,
    "write to a slice": written_in_place,
    "write to a new tensor": filled_in_place,
    "residual": lambda x: x + torch.relu(x - 0.1),
    "gate of itself": lambda x: x * torch.sigmoid(x),
    "gate": lambda x: x[:, :3] * x[:, 3:],
    "product with itself": lambda x: x * x,
    "quotient": lambda x: x[:, :3] / positive(x[:, 3:]),
    "softmax by hand": lambda x: x.exp() / x.exp().sum(1, keepdim=True),
    "variance by hand": lambda x: (x - x.mean(1, keepdim=True)).pow(2).mean(1, keepdim=True),
    "F.glu": lambda x: F.glu(x, 1),
    "F.softmax": lambda x: x.softmax(1),
    "log_softmax": lambda x: F.log_softmax(x, 1),
    "logsumexp": lambda x: x.logsumexp(1, keepdim=True),
    "F.rms_norm": lambda x: F.rms_norm(x, (6,)),
    "F.layer_norm": lambda x: F.layer_norm(x, (6,)),
    "cat": lambda x: torch.cat([x.tanh(), x, x[:, :2].relu()], 1),
    "stack": lambda x: torch.stack([x.tanh(), x], 2),
    "split": lambda x: x.split([2, 4], 1)[1].tanh() * x.chunk(3, 1)[0].sum(1, keepdim=True),
    "slice": lambda x: x[:, 1::2].exp(),
    "index": lambda x: x[:, [4, 0, 0]].exp(),
    "index_select": lambda x: x.index_select(1, torch.tensor([5, 1])).tanh(),
    "gather": lambda x: x.tanh().gather(1, torch.tensor([[3, 1]]).expand(len(x), 2)),
    "flip": lambda x: x.flip(1).tanh(),
    "roll": lambda x: x.roll(2, 1) * x,
    "cumsum": lambda x: x.tanh().cumsum(1),
    "pad": lambda x: F.pad(x.tanh(), (1, 2), value=0.3).roll(1, 1) ** 2,
    "constant mask": lambda x: x.tanh().masked_fill(torch.arange(6) < 2, 0.5),
    "where of itself": lambda x: torch.where(x > 0.1, 2 * x, -x),
    "masked_fill of itself": lambda x: x.masked_fill(x < 0.2, 0.0),
    "relu by hand": lambda x: x * (x > 0),
    "maximum": lambda x: torch.maximum(x[:, :3], x[:, 3:]),
    "minimum": lambda x: torch.minimum(x[:, :3], x[:, 3:]),
    "maximum with a constant": lambda x: torch.maximum(x, torch.full((6,), 0.2, dtype=x.dtype)),
    "amax": lambda x: x.unflatten(1, (2, 3)).amax(2),
    "amin": lambda x: x.unflatten(1, (2, 3)).amin((1, 2), keepdim=True),
    "max of a dim": lambda x: x.unflatten(1, (3, 2)).max(1).values,
    "min of a dim": lambda x: x.unflatten(1, (3, 2)).min(1).values,
}

# Functions of hidden tensors of other shapes.
SHAPED: dict[str, tuple[tuple[int, ...], Body]] = {
    "matmul": ((3, 4), lambda x: x.transpose(1, 2) @ x.tanh()),
    "bmm": ((3, 4), lambda x: torch.bmm(x, x.transpose(1, 2))),
    "baddbmm": ((3, 3), lambda x: torch.baddbmm(x.tanh(), x, x.exp(), beta=0.5, alpha=2)),
    "einsum": ((3, 4), lambda x: torch.einsum("bij,bkj->bik", x, x.sigmoid())),
    "einsum of three": ((2, 3), lambda x: torch.einsum("bij,bij,bkj->bik", x, x.exp(), x.tanh())),
    "matrix by vector": ((3, 4), lambda x: torch.matmul(x, x[:, 0].unsqueeze(2))),
    "permute": ((2, 3, 2), lambda x: x.permute(0, 3, 1, 2).reshape(len(x), 4, 3).tanh()),
    "rearrange": ((4, 6), lambda x: x.view(len(x), 2, 2, 3, 2).permute(0, 1, 3, 2, 4).reshape(len(x), -1).exp()),
    "softmax of rows": ((3, 4), lambda x: x.softmax(-1)),
    "log_softmax of columns": ((3, 4), lambda x: x.log_softmax(1)),
    "logsumexp of all": ((3, 4), lambda x: x.logsumexp((1, 2))[:, None]),
    "F.group_norm": ((4, 3), lambda x: F.group_norm(x, 2)),
    "interpolate": ((2, 3, 3), lambda x: F.interpolate(x.tanh(), size=(5, 4), mode="bilinear")),
    "interpolate nearest": ((2, 4), lambda x: F.interpolate(x, scale_factor=2) ** 2),
    "reflect": ((2, 3, 3), lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect").exp()),
    "attention": ((3, 4), lambda x: F.scaled_dot_product_attention(x, x, x)),
    "attention across": ((3, 4), lambda x: F.scaled_dot_product_attention(x, x.tanh(), x.exp(), scale=0.7)),
    "attention causal": ((2, 3, 4), lambda x: F.scaled_dot_product_attention(x, x.flip(2), x, is_causal=True)),
    "attention masked": ((3, 4), lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=~later())),
    "attention masked by a number": (
        (3, 4),
        lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=-1e9 * later().to(x)),
    ),
    "attention shifted": ((3, 4), lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=shifts(x))),
    "max_pool1d": ((2, 8), lambda x: F.max_pool1d(x, 2)),
    "max_pool2d": ((2, 4, 4), lambda x: F.max_pool2d(x, 2)),
    "max_pool3d": ((1, 4, 4, 2), lambda x: F.max_pool3d(x, 2)),
    "max_pool1d overlapping": ((2, 8), lambda x: F.max_pool1d(x, 3, stride=1, padding=1)),
    "max_pool2d overlapping": ((1, 5, 5), lambda x: F.max_pool2d(x, 3, stride=2, padding=1)),
    "max_pool2d dilated": ((1, 5, 5), lambda x: F.max_pool2d(x, 2, stride=1, dilation=2, ceil_mode=True)),
    "max_pool3d overlapping": ((1, 3, 3, 3), lambda x: F.max_pool3d(x, 2, stride=1, padding=1)),
    "adaptive_max_pool1d": ((2, 7), lambda x: F.adaptive_max_pool1d(x, 3)),
    "adaptive_max_pool2d": ((1, 5, 4), lambda x: F.adaptive_max_pool2d(x, (2, 3))),
    "adaptive_max_pool3d": ((1, 4, 3, 3), lambda x: F.adaptive_max_pool3d(x, 2)),
    "max of all": ((3, 4), lambda x: x.flatten(1).max(1, keepdim=True)[0]),
    "avg_pool1d": ((2, 8), lambda x: F.avg_pool1d(x, 3, stride=2, padding=1).exp()),
    "avg_pool2d": ((1, 5, 5), lambda x: F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False).exp()),
    "avg_pool3d": ((1, 4, 4, 2), lambda x: F.avg_pool3d(x, 2).tanh()),
    "adaptive_avg_pool2d": ((1, 5, 4), lambda x: F.adaptive_avg_pool2d(x, (2, 3)).exp()),
}

# Modules on hidden tensors of a shape.
MODULES: dict[str, tuple[tuple[int, ...], Callable[[], Body]]] = {
    "GELU of tanh": ((6,), partial(nn.GELU, approximate="tanh")),
    "GLU of channels": ((4, 3), partial(nn.GLU, 1)),
    "Softmax2d": ((3, 2, 2), nn.Softmax2d),
    "LayerNorm": ((3, 4), lambda: drawn(nn.LayerNorm((3, 4)))),
    "LayerNorm plain": ((4,), lambda: nn.LayerNorm(4, elementwise_affine=False)),
    "GroupNorm": ((4, 3), lambda: drawn(nn.GroupNorm(2, 4))),
    "RMSNorm": ((3, 4), lambda: drawn(nn.RMSNorm(4))),
    "InstanceNorm1d": ((2, 5), lambda: drawn(nn.InstanceNorm1d(2, affine=True))),
    "InstanceNorm2d": ((2, 3, 3), lambda: nn.InstanceNorm2d(2)),
    "InstanceNorm1d of running": ((2, 5), lambda: nn.InstanceNorm1d(2, track_running_stats=True)),
    "BatchNorm1d": ((6,), lambda: nn.Sequential(drawn(nn.BatchNorm1d(6)), nn.Tanh())),
    "BatchNorm2d": ((2, 3, 3), lambda: nn.Sequential(drawn(nn.BatchNorm2d(2)), nn.ReLU())),
    "Bilinear": ((6,), lambda: Repeated(nn.Bilinear(6, 6, 3), 2)),
    "embedding": ((3, 4), Positions),
    "reused": ((6,), lambda: Reused(nn.ELU())),
    "reused in place": ((6,), lambda: Reused(nn.ReLU(inplace=True))),
    "cnn": (
        (1, 6, 6),
        lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(3, 1, 1), nn.ConvTranspose2d(3, 2, 2)),
    ),
    "MultiheadAttention": ((3, 4), lambda: attention(batch_first=True)),
    "MultiheadAttention with bias": ((3, 4), lambda: attention(batch_first=True, add_bias_kv=True)),
    "MultiheadAttention time first": ((3, 4), lambda: TimeFirst(attention())),
    "TransformerEncoderLayer": ((3, 4), encoder_layer),
    "TransformerEncoderLayer frozen": ((3, 4), lambda: encoder_layer().requires_grad_(False)),
    "TransformerEncoderLayer norm first": ((3, 4), lambda: encoder_layer(activation="gelu", norm_first=True)),
    "TransformerDecoderLayer": ((3, 4), lambda: Repeated(nn.TransformerDecoderLayer(4, 2, 6, batch_first=True), 2)),
    **{
        kind + suffix: ((3, 4), partial(recurrent, kind, batch_first=True, **options))
        for kind in ("LSTM", "GRU", "RNN")
        for suffix, options in (("", {}), (" of layers", {"num_layers": 2, "bidirectional": True}))
    },
    "RNN of relu": ((3, 4), partial(recurrent, "RNN", nonlinearity="relu", batch_first=True)),
    "LSTM time first": ((3, 4), lambda: TimeFirst(recurrent("LSTM"))),
    "LSTM last cell": ((3, 4), lambda: TimeFirst(Picked(nn.LSTM(4, 3), 1, 1))),
    "LSTM projected": ((3, 4), partial(recurrent, "LSTM", proj_size=2, batch_first=True)),
    **{
        kind: ((3, 4), partial(lambda k: Unrolled(getattr(nn, k)(4, 3)), kind))
        for kind in ("LSTMCell", "GRUCell", "RNNCell")
    },
}

# Operators without a rule of their own: what the warning must name, and a function of [B, 6].
GENERIC: dict[str, tuple[str, Body]] = {
    "prod": ("prod", lambda x: (x + 1).unflatten(1, (2, 3)).prod(2)),
    "cumprod": ("cumprod", lambda x: (x + 1).cumprod(1)),
    "norm": ("norm", lambda x: (x + 4).unflatten(1, (2, 3)).norm(dim=2)),
    "atan2": ("atan2", lambda x: torch.atan2(x[:, :3], x[:, 3:] + 8)),
    "logcumsumexp": ("logcumsumexp", lambda x: x.logcumsumexp(1)),
    "addcmul": ("addcmul", lambda x: torch.addcmul(x, x.tanh(), x.sigmoid(), value=0.5)),
    "addcdiv": ("addcdiv", lambda x: torch.addcdiv(x, x.tanh(), positive(x), value=0.5)),
    "lerp": ("lerp", lambda x: torch.lerp(x.tanh(), x.exp(), x.sigmoid())),
    "F.normalize": ("norm", lambda x: F.normalize(x, dim=1)),
    "topk": ("topk", lambda x: x.topk(3, 1).values),
    "sort": ("sort", lambda x: x.sort(1, descending=True).values),
}
# Of these, those with kinks, where a mean of gradients along a line is not exact.
KINKED = ("topk", "sort")

_ALL = [
    *(Operator(name, (6,), make) for name, make in ACTIVATIONS.items()),
    *(Operator(f"{name} in place", (6,), partial(ACTIVATIONS[name], inplace=True)) for name in IN_PLACE),
    *(Operator(name, (6,), partial(lambda f: f, body)) for name, body in FUNCTIONS.items()),
    *(Operator(name, shape, partial(lambda f: f, body)) for name, (shape, body) in SHAPED.items()),
    *(Operator(name, shape, make) for name, (shape, make) in MODULES.items()),
    *(Operator(name, (6,), partial(lambda f: f, body), named) for name, (named, body) in GENERIC.items()),
]
OPERATORS: dict[str, Operator] = {operator.name: operator for operator in _ALL}

generic_rule = pytest.mark.filterwarnings("ignore:DeepLift has no rule:UserWarning", "ignore:LSTM with projections")
