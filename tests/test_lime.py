"""Lime and LimeBase: captum's numbers for its own and for users' functions and models, and games in closed form."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fusum
import fusum.attr
from cases import Case, on
from checkers import assert_identical, assert_refused, assert_same
from fusum._utils.models import linear_model as models
from fusum.attr import Lime, LimeBase
from fusum.attr._core.lime import get_exp_kernel_similarity_function
from models import Recorder, noise, subject, tokens
from surrogate_cases import FUNCTIONS, SETTINGS, assert_near, case, few, near, rows_of

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

# Lasso's coefficients are captum's to float32 rounding.
ROUNDING = 5e-6


@pytest.fixture(name="captum_attr")
def _captum_attr() -> Any:
    return pytest.importorskip("captum.attr", reason="captum, whose numbers are the measure, is not installed")


@pytest.fixture(name="captum_models")
def _captum_models() -> Any:
    return pytest.importorskip("captum._utils.models.linear_model", reason="captum is not installed")


def same_as(captum_attr: Any, row: Case, **options: Any) -> None:
    """As captum with the case's options; options: fusum's, where they differ."""
    theirs = row.attribute(captum_attr, row.subject.peer)
    drawn = torch.get_rng_state()
    ours = Case(row.name, row.chain, row.model, row.arguments, options or row.options)
    assert_near(ours.attribute(fusum.attr), theirs, ROUNDING)
    assert torch.equal(torch.get_rng_state(), drawn), "other random numbers were drawn"


@pytest.mark.parametrize("row", on(rows_of("Lime")))
def test_same_as_captum(row: Case, captum_attr: Any) -> None:
    same_as(captum_attr, row)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("functions", FUNCTIONS)
def test_functions_of_users(functions: str, setting: str, captum_attr: Any) -> None:
    same_as(captum_attr, case("Lime", "mlp", options=dict(FUNCTIONS[functions]), n_samples=30, **SETTINGS[setting]))


@pytest.mark.parametrize("functions", ["near", "few"])
def test_functions_get_what_captum_gives_them(functions: str, captum_attr: Any) -> None:
    """The same arguments, of tuples too, for every sample of every example."""
    seen: list[Any] = []

    def noting(*args: Any, **kwargs: Any) -> Any:
        seen.append((args, {**kwargs, "num_interp_features": kwargs["num_interp_features"]}))
        return 0.5 if functions == "near" else few(*args, **kwargs)

    option = {"near": "similarity_func", "few": "perturb_func"}[functions]
    mask = (torch.tensor([[3, 4, 4, 5, 5, 5]]), torch.tensor([[[5, 3, 6], [6, 6, 3]]]))
    settings = {"feature_mask": mask, "baselines": (noise(4, 6, seed=3), 0.25)}
    row = case("Lime", "two_inputs", options={option: noting}, n_samples=3, **settings)
    row.attribute(captum_attr)
    theirs, seen = seen, []
    row.attribute(fusum.attr)
    assert len(seen) == len(theirs) == 12
    for (args, kwargs), (their_args, their_kwargs) in zip(seen, theirs, strict=True):
        assert kwargs.keys() == their_kwargs.keys()
        torch.testing.assert_close([*args, kwargs], [*their_args, their_kwargs], rtol=0, atol=1e-7)


MODELS = ["SkLearnLasso", "SkLearnRidge", "SkLearnLinearRegression"]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("functions", [None, "noisy", "short"])
@pytest.mark.parametrize("name", MODELS)
def test_models_of_users(name: str, functions: str | None, setting: str, captum_attr: Any, captum_models: Any) -> None:
    """captum's own objects, and those of fusum in their place."""
    given = FUNCTIONS[functions] if functions else {}
    options = {} if name.endswith("Regression") else {"alpha": 0.05}
    theirs = {**given, "interpretable_model": getattr(captum_models, name)(**options)}
    ours = {**given, "interpretable_model": getattr(models, name)(**options)}
    row = case("Lime", "mlp", options=theirs, n_samples=40, **SETTINGS[setting])
    same_as(captum_attr, row)
    same_as(captum_attr, row, **ours)


@pytest.mark.parametrize("width", [0.5, 1.0, 5.0])
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("model", ["mlp", "two_inputs", "whole", "sum_of_batch"])
def test_similarities(model: str, distance: str, width: float, captum_attr: Any) -> None:
    """fusum's function, which is computed without perturbed inputs, and captum's, which is called for each."""
    width *= 40 if model == "whole" else 3  # about the distances that there are
    theirs = captum_attr._core.lime.get_exp_kernel_similarity_function(distance, width)
    ours = get_exp_kernel_similarity_function(distance, width)
    baselines = (0.3, 1) if model == "two_inputs" else 1
    row = case("Lime", model, options={"similarity_func": theirs}, baselines=baselines)
    same_as(captum_attr, row)
    same_as(captum_attr, row, similarity_func=ours)
    same_as(captum_attr, row, similarity_func=lambda *args, **kwargs: ours(*args, **kwargs))
    with_few = case("Lime", model, options={"similarity_func": theirs, "perturb_func": few}, baselines=baselines)
    same_as(captum_attr, with_few, similarity_func=ours, perturb_func=few)


def test_similarity_function() -> None:
    x, y = noise(2, 3), noise(2, 3, seed=1)
    cosine = 1 - float((x * y).sum() / x.norm() / y.norm())
    assert math.isclose(get_exp_kernel_similarity_function()(x, y), math.exp(-(cosine**2) / 2), rel_tol=1e-5)
    far = float(((x - y) ** 2).sum())
    euclidean = get_exp_kernel_similarity_function("euclidean", 2.0)
    assert math.isclose(euclidean((x[:1], x[1:]), (y[:1], y[1:]), None), math.exp(-far / 8), rel_tol=1e-5)
    with pytest.raises(fusum.ArgumentError, match=r"^distance_mode: got 'manhattan'; expected"):
        get_exp_kernel_similarity_function("manhattan")
    with pytest.raises(fusum.ArgumentError, match=r"^kernel_width: got 0; expected"):
        get_exp_kernel_similarity_function("cosine", 0)


# Closed forms, seeds, formats.


def test_a_constant_has_no_coefficients() -> None:
    assert_same(Lime(lambda x: 3 + 0 * x.sum(1)).attribute(noise(5, 8)), torch.zeros(5, 8))


def test_a_linear_model_of_orthogonal_samples() -> None:
    """Of as many samples as there are coalitions, of equal weights, each coefficient is its own, less 4 alpha."""
    bits = (torch.arange(8)[:, None] >> torch.arange(3)) & 1

    def every(original: Tensor, **kwargs: Any) -> Iterator[Tensor]:
        yield from bits.split(1)

    x, slopes = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([1.0, -1.0, 0.01])
    lime = Lime(lambda x: x @ slopes + 5, similarity_func=lambda *args, **kwargs: 1.0, perturb_func=every)
    found = lime.attribute(x, n_samples=8)
    assert_same(found, torch.tensor([[1 - 0.04, -2 + 0.04, 0.0]]), atol=1e-4)


def test_same_seed_same_scores() -> None:
    row = case("Lime", "mlp")
    first, state = row.attribute(fusum.attr), torch.get_rng_state()
    assert_identical(row.attribute(fusum.attr), first)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("options", [{}, {"perturb_func": few}, {"similarity_func": near}])
def test_samples_of_an_example_are_evaluated_together(options: dict[str, Any]) -> None:
    model = Recorder(subject("mlp").module)
    Lime(model, **options).attribute(noise(5, 8), target=1, n_samples=100)
    assert len(model.rows) < 15


# LimeBase.


def moved(original: Tensor, **kwargs: Any) -> Tensor:
    """A perturb_func of inputs."""
    return original + kwargs.get("width", 1.0) * torch.randn_like(original)


def moving(original: Tensor, **kwargs: Any) -> Iterator[Tensor]:
    """The same as a generator that ends."""
    for _ in range(30):
        yield moved(original, **kwargs)


def reusing(original: Tensor, **kwargs: Any) -> Iterator[Tensor]:
    """The same as a generator that always writes to the same memory."""
    held = torch.empty_like(original)
    while True:
        yield held.copy_(moved(original, **kwargs))


def doubled(sample: Tensor, original: Tensor, **kwargs: Any) -> Tensor:
    return sample[:1].flatten(1) * 2


def nearer(original: Tensor, perturbed: Tensor, row: Tensor, **kwargs: Any) -> Tensor:
    return torch.exp(-(original - perturbed).norm() / kwargs.get("width", 1.0))


FORWARDS: dict[str, tuple[Callable[..., Any], Tensor, dict[str, Any]]] = {
    "module": (subject("mlp").module, noise(1, 8), {"target": 1}),
    "module-at-once": (subject("mlp").module, noise(1, 8), {"target": 1, "perturbations_per_eval": 4}),
    "function": (lambda x: subject("mlp").module(x)[:, 0], noise(1, 8), {}),
    "additional": (lambda x, y: subject("mlp").module(x) * y, noise(1, 8), {"target": [2]}),
    "sum": (lambda x: subject("mlp").module(x).sum(), noise(5, 8), {}),
    "one": (lambda x: subject("mlp").module(x).sum().reshape(1), noise(5, 8), {}),
    "float": (lambda x: float(subject("mlp").module(x).sum()), noise(5, 8), {}),
    "squeezed": (lambda x: subject("mlp").module(x)[:, 0].squeeze(), noise(1, 8), {}),
}


def based(attr: Any, forward: Any, ridge: Any, perturb: Any) -> Any:
    return attr.LimeBase(forward, ridge, nearer, perturb, False, None, doubled)


@pytest.mark.parametrize("perturb", [moved, moving, reusing])
@pytest.mark.parametrize("name", FORWARDS)
def test_samples_of_inputs(name: str, perturb: Any, captum_attr: Any, captum_models: Any) -> None:
    forward, x, keywords = FORWARDS[name]
    if perturb is reusing:
        keywords = {**keywords, "perturbations_per_eval": 1}  # captum keeps no copy of what it has not evaluated
    if name == "additional":
        keywords = {**keywords, "additional_forward_args": (torch.tensor([[2.0]]),)}
    found = []
    for attr, source in ((captum_attr, captum_models), (fusum.attr, models)):
        torch.manual_seed(0)
        method = based(attr, forward, source.SkLearnRidge(alpha=0.1), perturb)
        found.append((method.attribute(x, n_samples=40, width=0.5, **keywords), torch.get_rng_state()))
    assert_near(found[1][0], found[0][0], ROUNDING)
    assert torch.equal(found[1][1], found[0][1]), "other random numbers were drawn"


class Words(nn.Module):
    """The mean of word vectors, of texts of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.EmbeddingBag(30, 8), nn.Linear(8, 3)

    def forward(self, text: Tensor, offsets: Tensor | None = None) -> Tensor:
        return self.head(self.words(text, offsets))


def kept(row: Tensor, text: Tensor, **kwargs: Any) -> Tensor:
    return text[row.bool()].view(len(text), -1)


def words(text: Tensor, **kwargs: Any) -> Tensor:
    return torch.bernoulli(torch.full_like(text, 0.5, dtype=torch.float)).long()


def share(original: Tensor, perturbed: Tensor, row: Tensor, **kwargs: Any) -> float:
    return row.float().mean().item()


@pytest.mark.parametrize("flat", [False, True])
def test_texts_without_some_words(flat: bool, captum_attr: Any, captum_models: Any) -> None:
    """Samples of many lengths, for a model of rows, and for one that takes a single text only."""
    torch.manual_seed(1)
    module, text = Words(), tokens(1, 19, most=30)
    forward = (lambda text, offsets: module(text.squeeze(0), offsets)) if flat else Recorder(module)
    extra = (torch.zeros(1, dtype=torch.int64),) if flat else None
    found = []
    for attr, source in ((captum_attr, captum_models), (fusum.attr, models)):
        torch.manual_seed(0)
        method = attr.LimeBase(forward, source.SkLearnLasso(alpha=1e-3), share, words, True, kept, None)
        found.append(method.attribute(text, target=1, additional_forward_args=extra, n_samples=60))
    assert_near(found[1], found[0], ROUNDING)
    if not flat:
        assert len(forward.rows) < 60 + 30  # captum's 60, and one for each length


def test_another_model_and_its_representation() -> None:
    """Anything with fit and representation will do; its result is returned as it is."""

    class Mean:
        def fit(self, train_data: Any) -> None:
            self.batches = list(train_data)

        def representation(self) -> Tensor:
            ((rows, values, weights),) = self.batches
            assert rows.dtype == values.dtype == weights.dtype == torch.float32
            assert (rows.shape, values.shape, weights.shape) == ((7, 8), (7,), (7,))
            return (weights * values).sum() / weights.sum()

    found = based(fusum.attr, lambda x: 0 * x.sum(1) + 3, Mean(), moved).attribute(noise(1, 8), n_samples=7)
    assert_same(found, torch.tensor(3.0))
    method = Lime(lambda x: 0 * x.sum(1) + 3, interpretable_model=Mean())
    assert_same(method.attribute(noise(1, 8), n_samples=7, return_input_shape=False), torch.tensor(3.0))
    with pytest.raises(fusum.ArgumentError, match=r"^interpretable_model: got a representation of shape \(\)"):
        method.attribute(noise(1, 8), n_samples=7)


# Linear models of scikit-learn.


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_linear_models(name: str, weighted: bool, captum_models: Any) -> None:
    columns = (noise(30, 4), noise(30, seed=1), noise(30, seed=2).abs())[: 3 if weighted else 2]
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*columns), batch_size=12)
    ours, theirs = getattr(models, name)(fit_intercept=True), getattr(captum_models, name)(fit_intercept=True)
    ours.fit(data)
    theirs.fit(data)
    assert_same(ours.representation(), theirs.representation())
    assert_same(ours.bias(), theirs.bias())
    assert_same(ours(noise(3, 4)), theirs(noise(3, 4)).detach())
    assert list(inspect.signature(type(ours)).parameters) == list(inspect.signature(type(theirs)).parameters)


def test_a_linear_model_before_its_fit() -> None:
    with pytest.raises(RuntimeError, match="SkLearnRidge: fit comes first"):
        models.SkLearnRidge().representation()


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lime's own model does without it; others say that it is missing."""
    expected = case("Lime", "mlp").attribute(fusum.attr)

    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(models, "import_module", missing)
    with pytest.raises(ImportError, match="SkLearnLasso: scikit-learn is not installed"):
        case("Lime", "mlp", options={"interpretable_model": models.SkLearnLasso()}).attribute(fusum.attr)
    monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
    assert_identical(case("Lime", "mlp").attribute(fusum.attr), expected)


# Bad arguments.


def nothing(original: Any, **kwargs: Any) -> Iterator[Tensor]:
    yield from ()


RIDGE = models.SkLearnRidge()
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({"interpretable_model": object()}, "interpretable_model: got object; expected"),
    "similarity": ({"similarity_func": 1.0}, "similarity_func: got float; expected"),
    "perturb": ({"perturb_func": "few"}, "perturb_func: got str; expected"),
}
RETURNED: dict[str, tuple[dict[str, Any], str]] = {
    "several-similarities": ({"similarity_func": lambda x, *_, **__: x}, r"similarity_func: returned .*\(1, 8\)"),
    "no-similarity": ({"similarity_func": lambda *_, **__: None}, "similarity_func: returned NoneType; expected"),
    "no-row": ({"perturb_func": lambda *_, **__: 1}, "perturb_func: returned int; expected"),
    "features": ({"perturb_func": lambda *_, **__: noise(1, 7)}, r"perturb_func: returned .*\(1, 7\); expected"),
    "rows": ({"perturb_func": lambda *_, **__: noise(2, 8)}, r"perturb_func: returned .*\(2, 8\); expected"),
    "none-left": ({"perturb_func": nothing}, "perturb_func: ended before its first sample; expected"),
    "no-weights": ({"similarity_func": lambda *_, **__: 0.0}, "similarity_func: got samples of no weight"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_functions_are_refused(name: str) -> None:
    options, text = WRONG[name]
    model = Recorder(subject("mlp").module)
    assert_refused(lambda: Lime(model, **options).attribute(noise(5, 8), target=1), text.split(":")[0], model.rows)
    arguments = {"interpretable_model": RIDGE, "similarity_func": nearer, "perturb_func": moved, **options}
    method = LimeBase(model, *arguments.values(), False, None, doubled)
    assert_refused(lambda: method.attribute(noise(1, 8), target=1), text.split(":")[0], model.rows)


@pytest.mark.parametrize("name", RETURNED)
def test_functions_that_return_what_does_not_fit(name: str) -> None:
    options, text = RETURNED[name]
    with pytest.raises(fusum.ArgumentError, match=text):
        Lime(subject("mlp").module, **options).attribute(noise(2, 8), target=1, n_samples=4)


def test_a_missing_transformation() -> None:
    for space, name in ((True, "from_interp_rep_transform"), (False, "to_interp_rep_transform")):
        assert_refused(lambda s=space: LimeBase(len, RIDGE, nearer, moved, s, None, None), name, [])


def test_limebase_wants_one_number() -> None:
    method = based(fusum.attr, subject("mlp").module, RIDGE, moved)
    with pytest.raises(fusum.ArgumentError, match=r"^inputs: got 5 examples"):
        method.attribute(noise(5, 8), target=1)
    with pytest.raises(fusum.ArgumentError, match=r"^forward_func: returned 3 numbers for 1 examples"):
        method.attribute(noise(1, 8))


@pytest.mark.parametrize("name", ["similarity_func", "perturb_func", "interpretable_model"])
def test_strict_refuses_what_is_called_for_each_sample(name: str) -> None:
    own = {"similarity_func": near, "perturb_func": few, "interpretable_model": RIDGE}
    with fusum.config(strict=True), pytest.raises(fusum.StrictError, match=f"{name} of one's own"):
        Lime(subject("mlp").module, **{name: own[name]}).attribute(noise(5, 8), target=1)
    with fusum.config(strict=True), pytest.raises(fusum.StrictError, match="LimeBase are called"):
        based(fusum.attr, subject("mlp").module, RIDGE, moved).attribute(noise(1, 8), target=1)


def test_a_generator_that_ends_warns() -> None:
    method = based(fusum.attr, subject("mlp").module, RIDGE, moving)
    with pytest.warns(UserWarning, match="perturb_func ended after 30 samples"):
        method.attribute(noise(1, 8), target=1, n_samples=31)
