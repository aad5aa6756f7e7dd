"""captum's language model attribution, which fusum does not replace, with fusum's methods inside it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fusum
from checkers import assert_same

captum_attr = pytest.importorskip("captum.attr", reason="captum, which is patched here, is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
WORDS = ["<pad>", "<s>", "a", "dog", "in", "the", "rain", "sings", "well"]


class Tokenizer:
    """Words to numbers and back."""

    pad_token_id, eos_token_id, sep_token, unk_token_id = 0, 1, None, 0

    def encode(self, text: str, add_special_tokens: bool = False, return_tensors: str | None = None) -> Any:
        ids = [WORDS.index(word) for word in text.split()]
        return torch.tensor([ids]) if return_tensors else ids

    def decode(self, ids: Tensor | list[int], skip_special_tokens: bool = False) -> str:
        return " ".join(self.convert_ids_to_tokens(ids))

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        one = isinstance(ids, int)
        words = [WORDS[int(i)] for i in ([ids] if one else ids)]
        return words[0] if one else words

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        return WORDS.index(tokens) if isinstance(tokens, str) else [WORDS.index(t) for t in tokens]

    def __call__(self, text: str, return_offsets_mapping: bool = False, add_special_tokens: bool = False) -> Any:
        ends = [sum(len(word) + 1 for word in text.split()[: i + 1]) - 1 for i in range(len(text.split()))]
        starts = [end - len(word) for end, word in zip(ends, text.split(), strict=True)]
        return {"input_ids": self.encode(text), "offset_mapping": list(zip(starts, ends, strict=True))}


class Writer(nn.Module):
    """A language model as a Hugging Face model is called."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.words, self.mixer, self.head = nn.Embedding(9, 8), nn.GRU(8, 8, batch_first=True), nn.Linear(8, 9)
        self.device = torch.device("cpu")

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Any:
        states, _last = self.mixer(self.words(input_ids))
        return SimpleNamespace(logits=self.head(states))


@pytest.fixture
def patched() -> Iterator[None]:
    fusum.patch()
    yield
    fusum.unpatch()


def attributions(name: str, **arguments: Any) -> Any:
    model = Writer().eval()
    method = captum_attr.LLMAttribution(getattr(captum_attr, name)(model), Tokenizer())
    text = captum_attr.TextTokenInput("a dog in the rain", Tokenizer())
    torch.manual_seed(3)
    found = method.attribute(text, "sings well", forward_in_tokens=False, **arguments)
    return found.seq_attr, found.token_attr


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return {name: attributions(name, **own) for name, own in METHODS.items()}


METHODS: dict[str, dict[str, Any]] = {
    "FeatureAblation": {},
    "ShapleyValueSampling": {"n_samples": 6},
    "ShapleyValues": {},
    "Lime": {"n_samples": 20},
    "KernelShap": {"n_samples": 20},
}


@pytest.mark.parametrize("name", METHODS)
def test_methods_inside_it(name: str, expected: dict[str, Any], patched: None) -> None:
    assert getattr(captum_attr, name) is getattr(fusum.attr, name)
    assert_same(attributions(name, **METHODS[name]), expected[name])


class Listener(Writer):
    """Keeps the prompts that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[list[list[int]]] = []

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Any:
        self.heard.append(input_ids.tolist())
        return super().forward(input_ids)


def heard() -> list[list[list[int]]]:
    """The prompts of an ablation whose baselines are drawn anew for each."""
    model = Listener().eval()
    method = captum_attr.LLMAttribution(captum_attr.FeatureAblation(model), Tokenizer())
    random.seed(0)
    drawn = captum_attr.ProductBaselines([WORDS[2:], WORDS[2:]])
    text = captum_attr.TextTemplateInput("{} sings {}", ["rain", "well"], baselines=drawn)
    method.attribute(text, "in the rain", forward_in_tokens=False)
    return model.heard


def test_only_captums_prompts_are_tried() -> None:
    prompts = heard()
    fusum.patch()
    try:
        assert heard() == prompts
    finally:
        fusum.unpatch()


def test_its_lists_are_as_they_were() -> None:
    before = captum_attr.LLMAttribution.SUPPORTED_METHODS
    fusum.patch()
    assert fusum.attr.FeatureAblation in captum_attr.LLMAttribution.SUPPORTED_METHODS
    fusum.unpatch()
    assert captum_attr.LLMAttribution.SUPPORTED_METHODS is before


GRADIENTS: dict[str, dict[str, Any]] = {
    "LayerIntegratedGradients": {},
    "LayerGradientXActivation": {},
    "LayerGradientShap": {"baselines": torch.tensor([[2, 3, 2, 3, 2]])},
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradient_methods_inside_it(name: str, patched: None) -> None:
    model = Writer().eval()
    method = captum_attr.LLMGradientAttribution(getattr(captum_attr, name)(model, model.words), Tokenizer())
    text = captum_attr.TextTokenInput("a dog in the rain", Tokenizer())
    found = method.attribute(text, "sings well", **GRADIENTS[name])
    assert found.seq_attr.shape == (5,)
    assert found.token_attr.shape == (2, 5)
    assert found.token_attr.isfinite().all()
