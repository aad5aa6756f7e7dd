"""The models that the benchmarks explain: random weights, fixed seeds, eval mode."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

DLRM_DENSE, DLRM_SPARSE, DLRM_WIDTH = 13, 26, 16
BERT_WORDS, BERT_TOKENS, BERT_BLANK = 30522, 96, 103


def perceptron(*widths: int) -> nn.Sequential:
    """Linear layers of the given widths with a ReLU between each two."""
    layers: list[nn.Module] = []
    for width, following in pairwise(widths):
        layers += [nn.Linear(width, following), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def mlp() -> nn.Module:
    """The 8-100-50-10-1 regression network: [B, 8] -> [B, 1]."""
    return perceptron(8, 100, 50, 10, 1)


def digits_cnn() -> nn.Module:
    """A small classifier of digits: [B, 1, 8, 8] -> [B, 10]."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * 3 * 3, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


class Dlrm(nn.Module):
    """A recommendation model after its embedding tables: dense features, sparse vectors, dot interaction, top MLP.

    Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation Systems" (2019).
    """

    pairs: Tensor

    def __init__(self) -> None:
        super().__init__()
        vectors = DLRM_SPARSE + 1
        row, column = torch.tril_indices(vectors, vectors, offset=-1)
        self.bottom = nn.Sequential(perceptron(DLRM_DENSE, 512, 256, 64, DLRM_WIDTH), nn.ReLU())
        self.top = perceptron(DLRM_WIDTH + len(row), 512, 256, 1)
        self.register_buffer("pairs", row * vectors + column)

    def interact(self, dense: Tensor, *sparse: Tensor) -> Tensor:
        """What the top MLP takes."""
        bottom = self.bottom(dense)
        vectors = torch.stack((bottom, *sparse), dim=1)
        dots = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1).index_select(1, self.pairs)
        return torch.cat((bottom, dots), dim=1)

    def forward(self, dense: Tensor, *sparse: Tensor) -> Tensor:
        return torch.sigmoid(self.top(self.interact(dense, *sparse)))


class Cnn(nn.Module):
    """A small image classifier: [B, 3, 32, 32] -> [B, 10].

    It flattens by a function, since captum's LRP knows no `nn.Flatten`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.head = perceptron(4096, 128, 10)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.features(x).flatten(1))
        return scores


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut.

    All ReLUs are modules, since captum's guided backpropagation knows no others.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.residual(x) + self.shortcut(x))
        return out


def resnet18() -> nn.Module:
    """ResNet-18: [B, 3, H, W] -> [B, 1000]. He et al., "Deep Residual Learning for Image Recognition" (2016)."""
    stages: list[nn.Module] = []
    channels = 64
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        stages += [BasicBlock(channels, width, stride), BasicBlock(width, width, 1)]
        channels = width
    return nn.Sequential(
        nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
        *stages,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(512, 1000),
    )


def patches() -> nn.Module:
    """A small classifier of patches of 16 x 16 pixels: [B, 3, 224, 224] -> [B, 10]."""
    return nn.Sequential(nn.Conv2d(3, 16, 16, stride=16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 14 * 14, 10))


class Bert(nn.Module):
    """BERT-mini with a head of two classes: token ids and their mask, [B, T] each -> [B, 2].

    Turc et al., "Well-Read Students Learn Better" (2019). captum takes no outputs but tensors.
    """

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertForSequenceClassification  # no other model needs it

        config = BertConfig(
            vocab_size=BERT_WORDS,
            hidden_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=1024,
        )
        self.classifier = BertForSequenceClassification(config)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        logits: Tensor = self.classifier(tokens, attention_mask=mask).logits
        return logits


def build(model: Callable[[], nn.Module], device: str, scripted: bool = False) -> nn.Module:
    """The model with the same random weights every time, in eval mode, as TorchScript where asked.

    Args:
        model: one of this file's models.
        device: where its weights live.
        scripted: whether to return `torch.jit.script` of it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = model().eval().to(device)
    return torch.jit.script(built) if scripted else built


def draw(*shape: int, device: str, seed: int = 1) -> Tensor:
    """Standard normal data of a shape, the same every time and on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


def features(rows: int) -> Callable[[str], tuple[Tensor, ...]]:
    """Inputs of `mlp`: [rows, 8]."""
    return lambda device: (draw(rows, 8, device=device),)


def images(count: int, pixels: int) -> Callable[[str], tuple[Tensor, ...]]:
    """Inputs of the image models: [count, 3, pixels, pixels]."""
    return lambda device: (draw(count, 3, pixels, pixels, device=device),)


def superpixels(pixels: int, side: int) -> Callable[[str], Tensor]:
    """A feature mask of square cells for `images`: [1, 1, pixels, pixels]."""

    def make(device: str) -> Tensor:
        cell = torch.arange(pixels, device=device) // side
        return (cell[:, None] * (int(cell[-1]) + 1) + cell)[None, None]

    return make


def clicks(rows: int) -> Callable[[str], tuple[Tensor, ...]]:
    """Inputs of `Dlrm`: dense features [rows, 13] and 26 sparse vectors [rows, 16]."""
    widths = (DLRM_DENSE, *[DLRM_WIDTH] * DLRM_SPARSE)
    return lambda device: tuple(draw(rows, width, device=device, seed=1 + i) for i, width in enumerate(widths))


def sentences(count: int) -> Callable[[str], tuple[Tensor, ...]]:
    """Inputs of `Bert`: token ids [count, 96]."""

    def draw_tokens(device: str) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(1)
        return (torch.randint(1, BERT_WORDS, (count, BERT_TOKENS), generator=generator).to(device),)

    return draw_tokens


def sentence_mask(count: int) -> Callable[[str], Tensor]:
    """The mask of `sentences`, [count, 96]: each is an eighth shorter than the one before."""
    lengths = [BERT_TOKENS - i * BERT_TOKENS // 8 for i in range(count)]
    return lambda device: (torch.arange(BERT_TOKENS) < torch.tensor(lengths)[:, None]).long().to(device)
