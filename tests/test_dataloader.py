"""Scores of features for a metric of a whole loader, and how often and how far the loader is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import ceil
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fusum.attr
from checkers import assert_no_graph, assert_refused, assert_same, untouched
from fusum import ArgumentError, ArgumentTypeError
from fusum.attr import DataLoaderAttribution, FeatureAblation
from fusum.attr._core.dataloader_attr import InputRole
from models import Mlp, Recorder, noise, subject, tokens

X, LABELS = noise(10, 8), tokens(10, most=3)
CUTS = (slice(0, 4), slice(4, 8), slice(8, 10))
LABELLED = (InputRole.need_attr, InputRole.no_forward)


class Loader:
    """Yields batches as often as it is read; passes: how often; read: how many batches in all."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches, self.passes, self.read = batches, 0, 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        for batch in self.batches:
            self.read += 1
            yield batch


def batches(*columns: Tensor, form: Callable[..., Any] = list) -> list[Any]:
    return [form(column[cut] for column in columns) for cut in CUTS]


def explained(loader: Any, model: Any = None, **arguments: Any) -> Any:
    model = subject("mlp").module if model is None else model
    return DataLoaderAttribution(FeatureAblation(model)).attribute(loader, **arguments)


def total(before: Any, output: Tensor, _: Any) -> Tensor:
    return output.sum() + (0 if before is None else before)


def each_class(before: Any, output: Tensor, _: Any) -> Tensor:
    return output.sum(0) + (0 if before is None else before)


def hits(before: Any, output: Tensor, elements: Any) -> Tensor:
    return (output.argmax(1) == elements[-1]).sum() + (0 if before is None else before)


def confusion(before: Any, output: Tensor, elements: Any) -> tuple[Tensor, Tensor]:
    """Outputs and labels, for a metric of both."""
    if before is None:
        return output, elements[-1]
    return torch.cat([before[0], output]), torch.cat([before[1], elements[-1]])


def losses(state: tuple[Tensor, Tensor]) -> Tensor:
    """A metric of two rows and three columns."""
    output, labels = state
    found = nn.functional.cross_entropy(output, labels)
    return torch.stack([output.mean(0), found * torch.arange(3.0)])


MASK = torch.tensor([[0, 0, 1, 2, 2, 2, 1, 3]])
GAPS = torch.tensor([[5, 5, 0, 2, 2, 2, 0, 2]])
ARGUMENTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "baseline-number": {"baselines": 0.5},
    "baseline-row": {"baselines": noise(1, 8, seed=3)},
    "baseline-of-one": {"baselines": torch.tensor([0.25])},
    "mask": {"feature_mask": MASK},
    "mask-of-one": {"feature_mask": torch.tensor([[3]])},
    "gaps": {"feature_mask": GAPS},
    "gaps-by-feature": {"feature_mask": GAPS, "return_input_shape": False},
    "by-feature": {"return_input_shape": False},
    "mask-by-feature": {"feature_mask": MASK, "return_input_shape": False, "baselines": 1},
}
METRICS: dict[str, dict[str, Any]] = {
    "all-outputs": {},
    "to-metric-alone": {"to_metric": lambda outputs: outputs.softmax(1).mean()},
    "number": {"reduce": total},
    "numbers": {"reduce": each_class},
    "hits": {"reduce": hits},
    "matrix": {"reduce": confusion, "to_metric": lambda state: losses(state).flatten()},
    "float64": {"reduce": lambda before, output, _: output.double().sum(0)},
}


@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS)
@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_same_as_captum(arguments: dict[str, Any], metric: dict[str, Any]) -> None:
    captum_attr = pytest.importorskip("captum.attr", reason="captum, whose numbers are the measure, is not installed")
    model, keywords = subject("mlp").module, {**arguments, **metric, "perturbations_per_pass": 3}
    theirs = captum_attr.DataLoaderAttribution(captum_attr.FeatureAblation(model))
    expected = theirs.attribute(batches(X, LABELS), input_roles=(0, 2), **keywords)  # in its code 2 is not forwarded
    assert_same(explained(batches(X, LABELS), input_roles=LABELLED, **keywords), expected)


@pytest.mark.parametrize("per_pass", [1, 2, 5, 30])
def test_same_as_captum_for_several_inputs(per_pass: int) -> None:
    captum_attr = pytest.importorskip("captum.attr", reason="captum, whose numbers are the measure, is not installed")
    columns, model = (
        (noise(10, 6), LABELS, noise(10, 2, 3, seed=1)),
        lambda x, y: (x[:, None] * y.exp().sum(2)[..., None]).sin().sum(1),
    )
    shared = (torch.tensor([[0, 1, 2, 3, 3, 7]]), torch.tensor([[[7, 7, 4], [4, 2, 2]]]))
    for mask in (None, shared):
        keywords = {
            "feature_mask": mask,
            "baselines": (0.5, noise(1, 2, 3, seed=5)),
            "perturbations_per_pass": per_pass,
        }
        theirs = captum_attr.DataLoaderAttribution(captum_attr.FeatureAblation(model))
        expected = theirs.attribute(batches(*columns), input_roles=(0, 2, 0), reduce=each_class, **keywords)
        found = explained(batches(*columns), model, input_roles=(0, InputRole(1), 0), reduce=each_class, **keywords)
        assert_same(found, expected)


def test_a_matrix_of_numbers_is_scored_number_by_number() -> None:
    keywords = {"input_roles": LABELLED, "reduce": confusion}
    found = explained(batches(X, LABELS), to_metric=losses, **keywords)
    flat = explained(batches(X, LABELS), to_metric=lambda state: losses(state).flatten(), **keywords)
    assert found[0].shape == (6, 8)
    assert_same(found, flat)


@pytest.mark.parametrize("target", [0, 2])
def test_a_mean_over_the_loader_is_that_of_all_examples_at_once(target: int) -> None:
    """The closed form: what the mean output loses is the mean of what the examples lose."""
    model = subject("mlp").module
    alone = FeatureAblation(model).attribute(X, target=target, feature_mask=MASK)
    metric = {"to_metric": lambda outputs: outputs[:, target].mean()}
    assert_same(explained(batches(X), feature_mask=MASK, **metric)[0], alone.mean(0, keepdim=True))


@pytest.mark.parametrize("form", [tuple, list])
def test_all_forms_of_batches(form: Callable[..., Any]) -> None:
    """captum raises for tuples, and sees but the first row of each tensor."""
    expected = explained(batches(X))
    found = explained(batches(X, form=form))
    assert isinstance(found, tuple)
    assert_same(found, expected)
    of_tensors = explained([X[cut] for cut in CUTS])
    assert_same(of_tensors, expected[0])


def test_a_loader_of_torch() -> None:
    dataset = TensorDataset(X, LABELS)
    found = explained(DataLoader(dataset, batch_size=3), input_roles=LABELLED, reduce=hits)
    assert_same(found, explained(batches(X, LABELS), input_roles=LABELLED, reduce=hits))


@pytest.mark.parametrize("per_pass", range(1, 11))
@pytest.mark.parametrize("count", [1, 4, 8])
def test_passes_and_states(per_pass: int, count: int) -> None:
    """A look at the first batch, a pass, and one for so many features each; no more states are held than one needs."""

    class State(list[Tensor]):
        alive = most = 0

        def __init__(self) -> None:
            State.alive += 1
            State.most = max(State.most, State.alive)

        def __del__(self) -> None:
            State.alive -= 1

    def collect(state: State | None, output: Tensor, _: Any) -> State:
        state = State() if state is None else state
        state.append(output)
        return state

    recorder, loader = Recorder(subject("mlp").module), Loader(batches(X))
    mask = (torch.arange(8) % count)[None]
    keywords = {"reduce": collect, "to_metric": lambda state: torch.cat(state).mean(0)}
    explained(loader, recorder, feature_mask=mask, perturbations_per_pass=per_pass, **keywords)
    assert loader.passes == ceil(count / per_pass) + 2  # as captum reads it
    assert loader.read == 1 + (loader.passes - 1) * len(CUTS)
    together = [1, *(min(per_pass, count - start) for start in range(0, count, per_pass))]
    assert recorder.rows == [rows for times in together for rows in (4, 4, 2) for _ in range(times)]
    assert State.most == min(per_pass, count)


def test_features_that_no_element_has_cost_no_pass() -> None:
    loader = Loader(batches(X))
    scores = explained(loader, feature_mask=GAPS, return_input_shape=False)
    assert loader.passes == 3 + 2
    assert scores.shape == (30, 6)
    assert not scores[:, [1, 3, 4]].any()


class Scaled(nn.Module):
    """Takes an input, a scale for each example, and, if it must, labels."""

    def forward(self, x: Tensor, scale: Tensor, *more: Any) -> Tensor:
        assert not more, "labels are not for the model"
        return x.cumsum(1) * scale[:, None]


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2)])
def test_1_is_not_given_to_the_model_and_2_is(order: tuple[int, ...]) -> None:
    columns = {0: X, 1: LABELS, 2: noise(10, seed=7)}
    seen: list[tuple[Any, ...]] = []

    def reduce(before: Any, output: Tensor, elements: tuple[Any, ...]) -> Tensor:
        seen.append(elements)
        return total(before, output, elements)

    with pytest.warns(UserWarning, match="input_roles: 1 is not given to the model and 2 is") as caught:
        (scores,) = explained(batches(*[columns[i] for i in order]), Scaled(), input_roles=order, reduce=reduce)
    assert caught[0].filename == __file__
    assert_same(scores[0], (X * columns[2][:, None]).sum(0) * torch.arange(8, 0, -1))
    for i, role in enumerate(order):
        if role:
            assert all(torch.equal(e[i], columns[role][cut]) for e, cut in zip(seen, CUTS * 9, strict=True))


@pytest.mark.filterwarnings("error")  # roles by name need no warning
def test_elements_of_any_kind_that_are_not_explained() -> None:
    loader = [[X[cut], {"name": "a"}, ["text"]] for cut in CUTS]
    roles = (InputRole.need_attr, InputRole.need_forward, InputRole.no_forward)
    model = lambda x, options: x * len(options)  # noqa: E731
    assert_same(explained(loader, model, input_roles=roles), explained(batches(X), lambda x: x))


def test_integers_stay_integers_unless_baselines_are_not() -> None:
    ids, table = tokens(10, 5), nn.Embedding(20, 3)
    (scores,) = explained(batches(ids), lambda x: x.sum(1), reduce=total, baselines=0.5)
    assert_same(scores[0], (ids - 0.5).sum(0))
    (scores,) = explained(batches(ids), lambda ids: table(ids).sum((1, 2)), reduce=total, baselines=7)
    each = table.weight.detach().sum(1)
    assert_same(scores[0], each[ids].sum(0) - 10 * each[7])


def test_what_is_replaced_is_gone_even_if_it_was_not_a_number() -> None:
    x = X.clone()
    x[3, 2] = torch.nan
    (scores,) = explained(batches(x), lambda x: x.nan_to_num(100.0).sum(1), reduce=total)
    assert_same(scores[0], x.nan_to_num(100.0).sum(0))


def test_a_model_that_writes_to_its_inputs() -> None:
    def overwriting(x: Tensor) -> Tensor:
        return x.mul_(2).sum(1)

    before = X.clone()
    assert_same(explained(batches(X), overwriting), explained(batches(X), lambda x: (2 * x).sum(1)))
    assert torch.equal(X, before)


def test_models_of_any_format() -> None:
    model = subject("mlp").module
    expected = explained(batches(X), model)
    assert_same(explained(batches(X), torch.jit.script(model)), expected)
    rows = {0: torch.export.Dim("rows", min=2, max=64)}
    assert_same(explained(batches(X), torch.export.export(model, (X,), dynamic_shapes=(rows,))), expected)
    for_four = torch.export.export(model, (X[:4],))  # the last batch is shorter, and padded
    assert_same(explained(batches(X), for_four), expected)
    assert_same(explained(batches(X), for_four, reduce=total), explained(batches(X), model, reduce=total))


def test_outputs_in_containers() -> None:
    model = subject("mlp").module
    plain = explained(batches(X), model)
    assert_same(explained(batches(X), lambda x: {"loss": X[0, 0], "logits": model(x)}), plain)
    first = {"reduce": lambda before, output, _: total(before, output[1], _)}
    assert_same(explained(batches(X), lambda x: (x, model(x)), **first), explained(batches(X), model, reduce=total))


def test_the_model_and_its_modes_stay_as_they_are() -> None:
    model = Mlp(8)
    loader = batches(X)
    with untouched(model, X):
        assert_no_graph(explained(loader, model))

    def fails(before: Any, output: Tensor, _: Any) -> Any:
        assert not output.requires_grad
        raise KeyError("mine")

    with untouched(model, X), pytest.raises(KeyError, match="mine"):
        explained(loader, model, reduce=fails)
    expected = explained(loader, model)
    with torch.inference_mode():
        assert_same(explained(loader, model), expected)


def test_it_counts_as_fused() -> None:
    fusum.profile.start()
    explained(batches(X))
    assert fusum.profile.stop()["DataLoaderAttribution"].fused == 1


PAIR = batches(X, LABELS)
WRONG: list[Any] = [
    ("dataloader", {"dataloader": (batch for batch in PAIR)}, ArgumentTypeError),
    ("dataloader", {"dataloader": 5}, ArgumentTypeError),
    ("dataloader", {"dataloader": []}, ArgumentError),
    ("dataloader", {"dataloader": [{"x": X}]}, ArgumentTypeError),
    ("dataloader", {"dataloader": [[["text"], X]], "input_roles": (0, 0)}, ArgumentTypeError),
    ("dataloader", {"dataloader": [[torch.tensor(1.0), LABELS]]}, ArgumentError),
    ("dataloader", {"dataloader": [[X[:0], LABELS]]}, ArgumentError),
    ("input_roles", {"input_roles": 0}, ArgumentTypeError),
    ("input_roles", {"input_roles": (0,)}, ArgumentError),
    ("input_roles", {"input_roles": (0, 3)}, ArgumentError),
    ("input_roles", {"input_roles": (0, "label")}, ArgumentTypeError),
    ("input_roles", {"input_roles": (0, True)}, ArgumentTypeError),
    ("input_roles", {"input_roles": (1, 2)}, ArgumentError),
    ("baselines", {"baselines": noise(4, 8)}, ArgumentError),
    ("baselines", {"baselines": noise(1, 7)}, ArgumentError),
    ("baselines", {"baselines": "zero"}, ArgumentTypeError),
    ("baselines[0]", {"baselines": (noise(4, 8),)}, ArgumentError),
    ("feature_mask", {"feature_mask": MASK.expand(4, 8)}, ArgumentError),
    ("feature_mask", {"feature_mask": MASK[0]}, ArgumentError),
    ("feature_mask", {"feature_mask": MASK[:, :7]}, ArgumentError),
    ("feature_mask", {"feature_mask": MASK.float()}, ArgumentTypeError),
    ("feature_mask", {"feature_mask": (MASK, MASK)}, ArgumentError),
    ("feature_mask[0]", {"feature_mask": (MASK[0],)}, ArgumentError),
    ("reduce", {"reduce": "sum"}, ArgumentTypeError),
    ("to_metric", {"to_metric": 1}, ArgumentTypeError),
    ("perturbations_per_pass", {"perturbations_per_pass": 0}, ArgumentError),
    ("perturbations_per_pass", {"perturbations_per_pass": 1.5}, ArgumentTypeError),
    ("show_progress", {"show_progress": 1}, ArgumentTypeError),
    ("return_input_shape", {"return_input_shape": None}, ArgumentTypeError),
]


@pytest.mark.parametrize(("names", "arguments", "kind"), WRONG)
def test_refused_before_the_loader_is_read_on(names: str, arguments: dict[str, Any], kind: type[Exception]) -> None:
    recorder, loader = Recorder(subject("mlp").module), Loader(PAIR)
    keywords = {"dataloader": loader, "input_roles": LABELLED, **arguments}
    if isinstance(keywords["dataloader"], list):
        keywords["dataloader"] = loader = Loader(keywords["dataloader"])
    attribution = DataLoaderAttribution(FeatureAblation(recorder))
    assert_refused(lambda: attribution.attribute(**keywords), names, recorder.rows, kind)
    assert loader.read <= 1


@pytest.mark.parametrize(
    "last", [X[:2], [X[:2]], [X[:2], LABELS, LABELS], [X[:2, :7], LABELS], [X[:, None], LABELS], 5]
)
def test_batches_of_another_form_raise(last: Any) -> None:
    with pytest.raises(ArgumentError, match=r"^dataloader: got a batch .*; expected"):
        explained([*PAIR, last], input_roles=LABELLED)


@pytest.mark.parametrize(
    ("metric", "names"),
    [
        ({}, "reduce: got None for a model that returns one number a batch; expected a function"),
        ({"reduce": lambda *_: 1.0}, "reduce: returned float; expected a tensor"),
        ({"to_metric": lambda outputs: outputs.sum().item()}, "to_metric: returned float; expected a tensor"),
        ({"to_metric": lambda outputs: outputs > 0}, "to_metric: returned a tensor of torch.bool"),
        ({"to_metric": lambda outputs: outputs.byte()}, "to_metric: returned a tensor of torch.uint8"),
        ({"to_metric": lambda outputs: outputs[outputs > 0]}, "to_metric: got shape .*; expected the same"),
        ({"reduce": lambda before, output, _: output[output > 0]}, "reduce: got shape .*; expected the same"),
    ],
)
def test_metrics_that_are_none(metric: dict[str, Any], names: str) -> None:
    with pytest.raises(ArgumentError, match=names):
        explained(PAIR, None if metric else lambda x: x.sum(), input_roles=LABELLED, **metric)


def test_a_loader_that_can_be_read_but_once_raises() -> None:
    class Once(Loader):
        def __iter__(self) -> Iterator[Any]:
            yield from () if self.passes else super().__iter__()

    with pytest.raises(ArgumentError, match="dataloader: got 0 examples in a later pass; expected some, as in"):
        explained(Once(PAIR), input_roles=LABELLED)


def test_other_methods_are_refused() -> None:
    model = subject("mlp").module
    for name in ("Occlusion", "FeaturePermutation", "ShapleyValueSampling", "IntegratedGradients", "Saliency"):
        with pytest.raises(ArgumentTypeError, match=f"attr_method: got fusum.attr.*{name}; expected .*FeatureAblation"):
            DataLoaderAttribution(getattr(fusum.attr, name)(model))
    for other in (type("Mine", (FeatureAblation,), {})(model), model, None):
        with pytest.raises(ArgumentTypeError, match=r"attr_method: got .*; expected fusum.attr.*FeatureAblation"):
            DataLoaderAttribution(other)


def test_the_object_is_left_as_it_is() -> None:
    method = FeatureAblation(subject("mlp").module)
    attribution = DataLoaderAttribution(method)
    assert attribution.attr_method is method
    assert method.forward_func is attribution.forward_func
    with pytest.raises(NotImplementedError, match="attribute_future"):
        attribution.attribute_future()
