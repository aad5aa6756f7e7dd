"""Token ids: paths between what embedding layers hold, noise on it, and layers that take vectors in their place."""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fusum
import fusum.attr
from cases import DELTA, Case, on, seed
from checkers import assert_complete, assert_identical, assert_no_graph, assert_same, untouched
from fusum import ArgumentError
from fusum.attr import (
    IntegratedGradients,
    InterpretableEmbeddingBase,
    LayerActivation,
    LayerGradientXActivation,
    LayerIntegratedGradients,
    NoiseTunnel,
    TokenReferenceBase,
    configure_interpretable_embedding_layer,
    remove_interpretable_embedding_layer,
)
from models import Recorder, noise, subject, tokens

# captum warns of much; configure_interpretable_embedding_layer is meant to.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

WORDS, KINDS = subject("embedded").inputs
MODEL = subject("embedded").module
LINE = {"n_steps": 7, **DELTA}


def case(name: str, layer: Any, label: str = "", model: str = "embedded", **arguments: Any) -> Case:
    return Case(f"{name}-{model}-{layer}{label}", (name,), model, arguments, layer=layer)


BASELINES = {
    "zeros": None,
    "ids": (3, 1),
    "row": (tokens(1, 6, seed=5), tokens(1, 6, most=3, seed=6)),
    "row-each": (tokens(4, 6, seed=5), 0),
}
CASES = [
    *(case("LayerIntegratedGradients", "words", f"-{n}", baselines=b, **LINE) for n, b in BASELINES.items()),
    *(case("LayerIntegratedGradients", "kinds", f"-{n}", baselines=b, **LINE) for n, b in BASELINES.items()),
    case("LayerIntegratedGradients", "words", "-cut", internal_batch_size=5, **LINE),
    case("LayerIntegratedGradients", "body", **LINE),
    case("LayerIntegratedGradients", "body", "-in", attribute_to_layer_input=True, **LINE),
    case("LayerGradientXActivation", "words"),
    case("LayerGradientXActivation", "act"),
    case("LayerGradCam", "words"),
    case("LayerActivation", "kinds"),
    case("LayerActivation", "words", "-in", attribute_to_layer_input=True),
    case("LayerDeepLift", "words", baselines=BASELINES["row"], **DELTA),
]


@pytest.mark.parametrize("case", on(CASES))
def test_the_numbers_of_captum(case: Case) -> None:
    captum_attr = pytest.importorskip("captum.attr", reason="captum, whose numbers are the measure, is not installed")
    with untouched(MODEL, WORDS, KINDS):
        found = case.attribute(fusum.attr)
    assert_no_graph(found)
    assert_same(found, case.attribute(captum_attr))


@pytest.mark.parametrize("layers", [["words", "kinds"], ["kinds", "words"]])
@pytest.mark.parametrize("multiply", [True, False])
def test_several_embedding_layers_at_once(layers: list[str], multiply: bool) -> None:
    captum_attr = pytest.importorskip("captum.attr", reason="captum, whose numbers are the measure, is not installed")
    modules = [MODEL.get_submodule(name) for name in layers]
    results = []
    for attr in (fusum.attr, captum_attr):
        method = attr.LayerIntegratedGradients(MODEL, modules, multiply_by_inputs=multiply)
        scores, delta = method.attribute((WORDS, KINDS), BASELINES["row"], target=1, **LINE)
        assert isinstance(scores, list)
        results.append((*scores, delta))
    assert_same(*results)


@pytest.mark.parametrize("baselines", BASELINES.values(), ids=BASELINES)
def test_several_embedding_layers_are_complete_together(baselines: Any) -> None:
    method = LayerIntegratedGradients(MODEL, ["words", "kinds"])
    scores, delta = method.attribute((WORDS, KINDS), baselines, target=1, n_steps=50, **DELTA)
    start = [torch.as_tensor(b).expand(4, 6) for b in baselines or (0, 0)]
    with torch.no_grad():
        change = (MODEL(WORDS, KINDS) - MODEL(*start))[:, 1]
    assert_complete(tuple(scores), change, 1e-5)
    assert delta.abs().max() < 1e-5


@pytest.mark.parametrize("rows", [None, 1, 3])
def test_an_embedding_layer_that_runs_twice(rows: int | None) -> None:
    source = subject("compared")
    a, b = source.inputs
    method = LayerIntegratedGradients(source.module, source.module.words)
    scores, delta = method.attribute((a, b), (2, 0), target=1, n_steps=50, internal_batch_size=rows, **DELTA)
    assert [s.shape for s in scores] == [(4, 6, 4), (4, 3, 4)]
    with torch.no_grad():
        change = (source.module(a, b) - source.module(0 * a + 2, 0 * b))[:, 1]
    assert_complete(scores, change, 1e-5)
    assert delta.abs().max() < 1e-5


def test_ids_beside_what_is_explained() -> None:
    """Ids may be additional arguments: these of one example each travel with it."""
    model = subject("embedded").module
    method = LayerIntegratedGradients(lambda words, kinds: model(words, kinds), model.words)
    found = method.attribute(WORDS, target=1, additional_forward_args=KINDS, n_steps=7, internal_batch_size=3)
    held = model.words(WORDS).detach()
    expected = IntegratedGradients(lambda vectors, kinds: after_words(vectors, kinds)).attribute(
        held, model.words(0 * WORDS).detach(), target=1, additional_forward_args=KINDS, n_steps=7
    )
    assert_same(found, expected)


def after_words(vectors: Tensor, kinds: Tensor) -> Tensor:
    """The model from what its words' layer holds."""
    return MODEL.head(MODEL.act(MODEL.body(vectors + MODEL.kinds(kinds))).mean(1))


def test_deep_lift_of_many_ids_is_the_mean_over_them() -> None:
    many = (tokens(3, 6, seed=5), tokens(3, 6, most=3, seed=6))
    found, delta = case("LayerDeepLiftShap", "words", baselines=many, **DELTA).attribute(fusum.attr)
    each = [
        case("LayerDeepLift", "words", baselines=tuple(b[i : i + 1] for b in many), **DELTA).attribute(fusum.attr)
        for i in range(3)
    ]
    assert_same(found, torch.stack([scores for scores, _ in each]).mean(0))
    assert_same(delta, torch.stack([gap for _, gap in each], 1).flatten())


# One row for all examples.


class Placed(nn.Module):
    """Words, and places that all sentences share; each: of every sentence its own."""

    def __init__(self, each: bool) -> None:
        super().__init__()
        self.words, self.places, self.head, self.each = nn.Embedding(20, 4), nn.Embedding(6, 4), nn.Linear(4, 3), each

    def forward(self, words: Tensor) -> Tensor:
        places = torch.arange(6)[None]
        if self.each:
            places = places.expand(len(words), 6)
        return self.head(torch.tanh(self.words(words) + self.places(places)).sum(1))


def placed() -> tuple[Placed, Placed]:
    shared, each = Placed(False).eval(), Placed(True).eval()
    each.load_state_dict(shared.state_dict())
    return shared, each


PLACED: dict[str, dict[str, Any]] = {
    "LayerActivation": {},
    "LayerGradientXActivation": {"target": 1},
    "LayerGradCam": {"target": 1},
    "LayerIntegratedGradients": {"target": 1, **LINE},
    "LayerDeepLift": {"target": 1, "baselines": 3, **DELTA},
    "LayerLRP": {"target": 1, **DELTA},
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("form", ["eager", "scripted", "exported"])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("name", PLACED)
def test_a_row_for_all_examples_has_scores_for_each(name: str, rows: int, form: str) -> None:
    """Also where sizes of the layer are the number of examples, or of examples and baselines."""
    (shared, each), ids = placed(), tokens(rows, 6)
    model: Any = shared
    if form == "scripted":
        model = torch.jit.script(shared)
    elif form == "exported":
        model = torch.export.export(shared, (tokens(7, 6),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    for size in (None, 2):
        with fusum.config(max_rows=size) if size else nullcontext():
            found = getattr(fusum.attr, name)(model, "places").attribute(ids, **PLACED[name])
        assert_same(found, getattr(fusum.attr, name)(each, "places").attribute(ids, **PLACED[name]))


def test_captum_adds_up_what_a_row_for_all_examples_has() -> None:
    captum_attr = pytest.importorskip("captum.attr", reason="captum, whose numbers are the measure, is not installed")
    shared, _ = placed()
    for rows in (1, 3):
        ids = tokens(rows, 6)
        ours, theirs = (a.LayerGradientXActivation(shared, shared.places) for a in (fusum.attr, captum_attr))
        assert_same(ours.attribute(ids, target=1).sum(0, keepdim=True), theirs.attribute(ids, target=1))
    ours, theirs = (a.LayerIntegratedGradients(shared, shared.places) for a in (fusum.attr, captum_attr))
    assert_same(ours.attribute(ids[:1], target=1, **LINE), theirs.attribute(ids[:1], target=1, **LINE))


# Noise.


def tunnel(layer: Any, **own: Any) -> Any:
    seed()
    return NoiseTunnel(LayerIntegratedGradients(MODEL, layer)).attribute(
        (WORDS, KINDS), **{"target": 1, "n_steps": 7, "nt_samples": 3, "stdevs": 0.4, **own}
    )


def test_no_noise_gives_the_plain_scores() -> None:
    plain = LayerIntegratedGradients(MODEL, MODEL.words).attribute((WORDS, KINDS), target=1, n_steps=7)
    assert_same(tunnel(MODEL.words, stdevs=0.0), plain)


@pytest.mark.parametrize("rows", [None, 5])
def test_noise_goes_to_what_the_layer_holds(rows: int | None) -> None:
    """The mean over copies of the layer's values, an example's side by side, each with its noise."""
    seed()
    held, start = MODEL.words(WORDS).detach(), MODEL.words(0 * WORDS).detach()
    copies = held.repeat_interleave(3, 0)
    noisy = torch.normal(copies, 0.4 * torch.ones_like(copies))
    kinds = KINDS.repeat_interleave(3, 0)
    line = IntegratedGradients(after_words)
    scores = line.attribute(noisy, start.repeat_interleave(3, 0), target=1, additional_forward_args=kinds, n_steps=7)
    with untouched(MODEL, WORDS, KINDS):
        found = tunnel(MODEL.words, internal_batch_size=rows)
    assert_same(found, scores.unflatten(0, (4, 3)).mean(1))


def test_noise_is_drawn_for_one_layer_after_the_other() -> None:
    seed()
    held = [MODEL.words(WORDS).detach(), MODEL.kinds(KINDS).detach()]
    copies = [h.repeat_interleave(3, 0) for h in held]
    noisy = tuple(torch.normal(c, s * torch.ones_like(c)) for c, s in zip(copies, (0.4, 0.2), strict=True))
    start = (MODEL.words(0 * WORDS)[:1].detach(), MODEL.kinds(0 * KINDS)[:1].detach())
    line = IntegratedGradients(lambda words, kinds: MODEL.head(MODEL.act(MODEL.body(words + kinds)).mean(1)))
    expected = line.attribute(noisy, start, target=1, n_steps=7)
    found = tunnel([MODEL.words, MODEL.kinds], stdevs=(0.4, 0.2))
    assert isinstance(found, list)
    assert_same(tuple(found), tuple(s.unflatten(0, (4, 3)).mean(1) for s in expected))


@pytest.mark.parametrize("kind", ["smoothgrad", "smoothgrad_sq", "vargrad"])
@pytest.mark.parametrize("size", [None, 2])
def test_a_seed_gives_the_same_again(kind: str, size: int | None) -> None:
    own = {"nt_type": kind, "nt_samples_batch_size": size, **DELTA}
    scores, delta = tunnel(MODEL.words, **own)
    assert scores.shape == (4, 6, 5)
    assert delta.shape == (12,)
    assert_identical((scores, delta), tunnel(MODEL.words, **own))
    quiet = tunnel(MODEL.words, **{**own, "stdevs": 0.0})[0]
    assert (scores - quiet).abs().max() > 0.01 * scores.abs().max()


def test_a_tunnel_reads_the_ids_once() -> None:
    """Three examples and a baseline: four is no size of the layer, so it is plain where it holds its rows."""
    model = Recorder(MODEL)
    NoiseTunnel(LayerIntegratedGradients(model, MODEL.words)).attribute(
        (WORDS[:3], KINDS[:3]), target=1, n_steps=7, nt_samples=3, internal_batch_size=10
    )
    assert sum(model.rows) == 3 + 1 + 3 * 3 * 7


# Layers that take vectors.


# A method of vectors, the class that gives the same of ids, and arguments of both.
SAME: dict[str, tuple[str, dict[str, Any]]] = {
    "IntegratedGradients": ("LayerIntegratedGradients", {"n_steps": 7}),
    "InputXGradient": ("LayerGradientXActivation", {}),
    "DeepLift": ("LayerDeepLift", {}),
}


@pytest.mark.parametrize("name", SAME)
def test_vectors_in_place_of_ids(name: str) -> None:
    """As in captum's tutorials: vectors are made of ids and explained, and the layer is put back."""
    model, (layered, own) = deepcopy(MODEL), SAME[name]
    words, given = model.words, model(WORDS, KINDS)
    from_ids = {"baselines": (2, KINDS)} if "X" not in name else {}
    expected = getattr(fusum.attr, layered)(model, words).attribute((WORDS, KINDS), target=1, **own, **from_ids)
    stand_in = configure_interpretable_embedding_layer(model, "words")
    vectors = stand_in.indices_to_embeddings(WORDS).detach()
    from_vectors = {"baselines": words(0 * WORDS + 2).detach()} if "X" not in name else {}
    explainer = getattr(fusum.attr, name)(model)
    found = explainer.attribute(vectors, target=1, additional_forward_args=KINDS, **own, **from_vectors)
    assert_same(found, expected)
    assert_same(model(vectors, KINDS), given)
    remove_interpretable_embedding_layer(model, stand_in)
    assert model.words is words
    assert_same(model(WORDS, KINDS), given)


def test_a_stand_in_knows_its_layer() -> None:
    model = deepcopy(MODEL)
    stand_in = configure_interpretable_embedding_layer(model, "words")
    assert isinstance(stand_in, InterpretableEmbeddingBase)
    assert model.words is stand_in
    assert (stand_in.num_embeddings, stand_in.embedding_dim, stand_in.full_name) == (20, 5, "words")
    vectors = noise(2, 3, 5)
    assert stand_in(vectors) is stand_in(input=vectors) is vectors


def test_a_layer_inside_another_is_replaced_there() -> None:
    model = nn.ModuleDict({"outer": nn.ModuleList([nn.Linear(2, 2), nn.Embedding(5, 3)])})
    embedding = model["outer"][1]
    stand_in = configure_interpretable_embedding_layer(model, "outer.1")
    assert model["outer"][1] is stand_in
    remove_interpretable_embedding_layer(model, stand_in)
    assert model["outer"][1] is embedding


def test_the_wrong_layer_is_refused_and_nothing_is_changed() -> None:
    model = deepcopy(MODEL)
    for name in ("sentences", "words.weight", ""):
        with untouched(model), pytest.raises(ArgumentError, match=r"^embedding_layer_name: "):
            configure_interpretable_embedding_layer(model, name)
    stand_in = configure_interpretable_embedding_layer(model, "words")
    with untouched(model), pytest.raises(ArgumentError, match=r"^embedding_layer_name: .*already"):
        configure_interpretable_embedding_layer(model, "words")
    with pytest.raises(ArgumentError, match=r"^inputs: got nothing"):
        stand_in()
    other = deepcopy(MODEL)
    with untouched(other), pytest.raises(ArgumentError, match=r"^interpretable_emb: "):
        remove_interpretable_embedding_layer(other, stand_in)


def test_it_warns_that_ids_no_longer_serve() -> None:
    with pytest.warns(UserWarning, match="words"):
        configure_interpretable_embedding_layer(deepcopy(MODEL), "words")


def test_a_stand_in_may_be_explained_as_a_layer() -> None:
    model = deepcopy(MODEL)
    stand_in = configure_interpretable_embedding_layer(model, "words")
    vectors = stand_in.indices_to_embeddings(WORDS).detach()
    found = LayerGradientXActivation(model, stand_in).attribute(vectors, target=1, additional_forward_args=KINDS)
    assert_same(found, LayerGradientXActivation(MODEL, MODEL.words).attribute((WORDS, KINDS), target=1))
    held = LayerActivation(model, stand_in).attribute(vectors, additional_forward_args=KINDS)
    assert_identical(held, vectors)


@pytest.mark.parametrize(("token", "length"), [(0, 5), (7, 1)])
def test_references(token: int, length: int) -> None:
    captum_attr = pytest.importorskip("captum.attr", reason="captum, whose results are the measure, is not installed")
    ours, theirs = TokenReferenceBase(token), captum_attr.TokenReferenceBase(token)
    for device in ("cpu", torch.device("cpu")):
        found = ours.generate_reference(length, device)
        assert_identical(found, theirs.generate_reference(length, device))
        assert found.tolist() == [token] * length


def test_references_are_baselines() -> None:
    reference = TokenReferenceBase(4).generate_reference(6, "cpu")[None]
    method = LayerIntegratedGradients(MODEL, MODEL.words)
    found = method.attribute((WORDS, KINDS), (reference, 0), target=1, n_steps=7)
    assert_same(found, method.attribute((WORDS, KINDS), (4, 0), target=1, n_steps=7))


def test_ids_of_any_integer_type() -> None:
    method = LayerIntegratedGradients(MODEL, MODEL.words)
    expected = method.attribute((WORDS, KINDS), target=1, n_steps=7)
    assert_same(method.attribute((WORDS.int(), KINDS.int()), target=1, n_steps=7), expected)


def test_float_inputs_beside_ids() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(20, 4), nn.Linear(4, 3)

        def forward(self, ids: Tensor, weights: Tensor) -> Tensor:
            return self.head(torch.tanh(self.words(ids) * weights[..., None]).sum(1))

    model, weights = Both().eval(), noise(4, 6)
    method = LayerIntegratedGradients(model, model.words)
    scores, delta = method.attribute((WORDS, weights), (0, weights), target=1, n_steps=50, **DELTA)
    with torch.no_grad():
        change = (model(WORDS, weights) - model(0 * WORDS, weights))[:, 1]
    assert_complete(scores, change, 1e-5)
    assert delta.abs().max() < 1e-5
