"""The numbers of methods that change inputs: captum's, those by brute force, and those of games in closed form."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, permutations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fusum.attr
from cases import Case, on, seed
from checkers import assert_same, flat
from fusum.attr import FeatureAblation, FeaturePermutation, Occlusion, ShapleyValues, ShapleyValueSampling
from models import noise, tokens
from perturbation_cases import METHODS, PERTURBED, ROUNDED, SAMPLING, THINNED, case

# captum warns of numbers that are missing in masks; fusum warns of a single example, which cannot be shuffled.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

captum_attr = pytest.importorskip("captum.attr", reason="captum, whose numbers are the measure, is not installed")


def same_as_captum(row: Case, **changes: Any) -> None:
    """The same scores, and torch's generator at the same place afterwards; changes: of captum's arguments only."""
    theirs = row.attribute(captum_attr, row.subject.peer, **changes)
    drawn = torch.get_rng_state()
    ours = row.attribute(fusum.attr)
    assert_same(ours, theirs)
    assert torch.equal(torch.get_rng_state(), drawn), "other random numbers were drawn"


@pytest.mark.parametrize("row", on([row for row in PERTURBED if not row.no_peer]))
def test_same_as_captum(row: Case) -> None:
    same_as_captum(row)


@pytest.mark.parametrize("row", on([row for row in PERTURBED if row.no_peer == THINNED]))
def test_masks_of_fewer_dimensions(row: Case) -> None:
    mask, x = row.arguments["feature_mask"], row.subject.inputs
    same_as_captum(row, feature_mask=mask.reshape(*[1] * (x.dim() - mask.dim()), *mask.shape))


@pytest.mark.parametrize("row", on([row for row in PERTURBED if row.no_peer == ROUNDED]))
def test_float_baselines_of_integers(row: Case) -> None:
    same_as_captum(row, inputs=row.subject.inputs.float())


class Switched(nn.Module):
    """Mixes rows if it is told to."""

    def forward(self, x: Tensor, mixes: bool) -> Tensor:
        return curved(x) - curved(x).mean() * mixes


def test_what_is_known_of_a_model_holds_for_the_same_arguments() -> None:
    model, x = Switched().eval(), noise(4, 6)
    for mixes in (False, True, False):
        ours, theirs = (a.FeatureAblation(model).attribute(x, None, None, mixes) for a in (fusum.attr, captum_attr))
        assert_same(ours, theirs)


# Brute force.


class Played:
    """A row's model as a game, by the definitions: labels are the features' numbers."""

    def __init__(self, row: Case) -> None:
        keywords, self.row = row.keywords(), row
        self.inputs = row.subject.tensors
        masks = keywords["feature_mask"]
        masks = masks if isinstance(masks, tuple) else (masks,)
        self.masks = [mask.expand(x.shape) for mask, x in zip(masks, self.inputs, strict=True)]
        self.labels = sorted({int(label) for mask in self.masks for label in mask.unique()})
        self.target = keywords.get("target")

    def value(self, present: set[int]) -> Tensor:
        """The output where the features present are as in the inputs, all others 0."""
        rows = [
            torch.where(torch.isin(mask, torch.tensor([*present])), x, torch.zeros_like(x))
            for x, mask in zip(self.inputs, self.masks, strict=True)
        ]
        with torch.no_grad():
            out = self.row.subject.module(*rows, *self.row.subject.extra)
        return out if self.target is None else out[:, self.target]

    def spread(self, scores: dict[int, Tensor]) -> tuple[Tensor, ...]:
        """Features' scores [examples] as elements'."""
        found = [torch.zeros(x.shape) for x in self.inputs]
        for into, mask in zip(found, self.masks, strict=True):
            for label, score in scores.items():
                into += (mask == label) * score.view(-1, *[1] * (into.dim() - 1))
        return tuple(found)

    def shapley(self) -> dict[int, Tensor]:
        """The mean over all orders."""
        totals = {label: torch.zeros(len(self.inputs[0])) for label in self.labels}
        orders = list(permutations(self.labels))
        for order in orders:
            for at, label in enumerate(order):
                gain = self.value({*order[: at + 1]}) - self.value({*order[:at]})
                totals[label] += gain / len(orders)
        return totals


BY_HAND = [row for row in PERTURBED if "-mask-" in row.name and row.name.endswith("-1")]


@pytest.mark.parametrize("row", on([row for row in BY_HAND if row.chain == ("FeatureAblation",) and row.no_peer == ""]))
def test_ablation_by_hand(row: Case) -> None:
    played = Played(row)
    everyone = {*played.labels}
    lost = {label: played.value(everyone) - played.value(everyone - {label}) for label in played.labels}
    assert_same(flat(row.attribute(fusum.attr)), played.spread(lost))


@pytest.mark.parametrize("row", on([row for row in BY_HAND if row.chain == ("ShapleyValues",) and row.no_peer == ""]))
def test_shapley_values_by_all_orders(row: Case) -> None:
    played = Played(row)
    assert_same(flat(row.attribute(fusum.attr)), played.spread(played.shapley()))


def test_permutation_by_hand() -> None:
    """One random order of the examples for each feature, which does not leave all in place."""
    x = noise(3, 4)
    seed()
    expected = torch.empty(3, 4)
    for j in range(4):
        order = torch.arange(3)
        while torch.equal(order, torch.arange(3)):
            order = torch.randperm(3)
        changed = x.clone()
        changed[:, j] = x[order, j]
        expected[:, j] = product_of(x) - product_of(changed)
    seed()
    assert_same(FeaturePermutation(product_of).attribute(x), expected)


def test_two_examples_are_always_swapped() -> None:
    x = noise(2, 6)
    for number in range(10):
        torch.manual_seed(number)
        assert_same(FeaturePermutation(additive).attribute(x), terms(x) - terms(x.flip(0)))


@pytest.mark.parametrize("strides", [1, 2, 3, (2, 3), (3, 1)])
def test_occlusion_by_hand(strides: Any) -> None:
    x, (high, wide) = noise(2, 5, 7), (3, 3)
    down, right = strides if isinstance(strides, tuple) else (strides, strides)
    total, times = torch.zeros(2, 5, 7), torch.zeros(5, 7)
    # The last window may end beyond the input.
    for top in range(0, 5 - high + down, down):
        for left in range(0, 7 - wide + right, right):
            changed = x.clone()
            changed[:, top : top + high, left : left + wide] = 0.5
            loss = curved(x) - curved(changed)
            total[:, top : top + high, left : left + wide] += loss[:, None, None]
            times[top : top + high, left : left + wide] += 1
    found = Occlusion(curved).attribute(x, (high, wide), strides, baselines=0.5)
    assert_same(found, total / times, rtol=1e-5, atol=1e-5)


# Games in closed form.

W = torch.tensor([0.5, -2.0, 0.0, 3.0, 1.0, -1.0])


def terms(x: Tensor) -> Tensor:
    return W.to(x.dtype) * x + x**2


def additive(x: Tensor) -> Tensor:
    return terms(x).sum(1)


def product_of(x: Tensor) -> Tensor:
    return x.prod(1)


def curved(x: Tensor) -> Tensor:
    return x.flatten(1).cumsum(1).tanh().sum(1)


def pairs(x: Tensor) -> Tensor:
    """Features that interact two by two."""
    return torch.einsum("bi,ij,bj->b", x, noise(x.shape[1], x.shape[1], seed=8).to(x.dtype), x)


EXPLAIN: dict[str, Callable[..., Any]] = {
    "FeatureAblation": lambda f, *args, **how: FeatureAblation(f).attribute(*args, **how),
    "Occlusion": lambda f, x, *args, **how: Occlusion(f).attribute(x, (1,), 1, *args, **how),
    "ShapleyValues": lambda f, *args, **how: ShapleyValues(f).attribute(*args, **how),
    "sampled": lambda f, *args, **how: ShapleyValueSampling(f).attribute(*args, n_samples=3, **how),
    "antithetic": lambda f, *args, **how: ShapleyValueSampling(f).attribute(*args, n_samples=3, antithetic=True, **how),
}
SHAPLEY = ("ShapleyValues", "sampled", "antithetic")


@pytest.mark.parametrize("explain", EXPLAIN)
@pytest.mark.parametrize("baseline", [0, -1.5, noise(1, 6, seed=1), noise(5, 6, seed=1)], ids=["0", "-1.5", "1", "5"])
def test_additive_games(explain: str, baseline: Any) -> None:
    x = noise(5, 6)
    expected = terms(x) - terms(baseline.expand(5, 6) if isinstance(baseline, Tensor) else torch.full((5, 6), baseline))
    assert_same(EXPLAIN[explain](additive, x, baseline), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [2, 3, 5])
def test_windows_over_an_additive_game(window: int) -> None:
    """An element's score is the mean, over the windows that hold it, of their sums."""
    x = noise(4, 6)
    sums = terms(x).unfold(1, window, 1).sum(2)
    holds = torch.tensor([[start <= place < start + window for start in range(7 - window)] for place in range(6)])
    expected = (sums @ holds.float().T) / holds.sum(1)
    assert_same(Occlusion(additive).attribute(x, (window,)), expected, rtol=1e-5, atol=1e-5)


def test_products() -> None:
    """All features share what only all of them together bring; each alone can take it all away."""
    x = noise(5, 6)
    whole = product_of(x)[:, None].expand(5, 6)
    assert_same(ShapleyValues(product_of).attribute(x), whole / 6)
    assert_same(FeatureAblation(product_of).attribute(x), whole)
    a, b = noise(4, 2), noise(4, 2, seed=1)
    pair = torch.stack([(a[:, i] - b[:, i]) * (a[:, 1 - i] + b[:, 1 - i]) / 2 for i in range(2)], 1)
    assert_same(ShapleyValues(product_of).attribute(a, b), pair)


def test_known_games() -> None:
    ones = torch.ones(1, 5)
    assert_same(ShapleyValues(lambda x: (x.sum(1) >= 3).float()).attribute(ones), ones / 5)  # a majority
    gloves = lambda x: torch.minimum(x[:, 0], x[:, 1] + x[:, 2])  # noqa: E731  one left glove, two right ones
    assert_same(ShapleyValues(gloves).attribute(ones[:, :3]), torch.tensor([[4 / 6, 1 / 6, 1 / 6]]))
    costs = torch.tensor([1.0, 3.0, 4.0])  # a runway: each pays its share of the parts it needs
    runway = lambda x: (x * costs).amax(1)  # noqa: E731
    assert_same(ShapleyValues(runway).attribute(ones[:, :3]), torch.tensor([[1 / 3, 1 / 3 + 1, 1 / 3 + 1 + 1]]))


def test_coalitions_are_weighed_by_their_sizes() -> None:
    """Of a game of sizes alone: a feature's gain averaged over the size of the coalition that it joins."""
    x = torch.ones(1, 12, dtype=torch.float64)
    worth = noise(13).double()
    found = ShapleyValues(lambda x: worth[x.sum(1).long()]).attribute(x)
    assert_same(found, ((worth[12] - worth[0]) / 12).float().expand(1, 12))
    first = lambda x: worth[x.sum(1).long()] * x[:, 0]  # noqa: E731
    assert_same(ShapleyValues(first).attribute(x)[:, 0], worth[1:].mean().float()[None])


@pytest.mark.parametrize("explain", EXPLAIN)
def test_a_feature_without_influence_gets_zero(explain: str) -> None:
    scores = EXPLAIN[explain](lambda x: x[:, 0] * x[:, 2] + x[:, 3].exp(), noise(5, 4))
    assert_same(scores[:, 1], torch.zeros(5), rtol=0, atol=1e-12)
    assert (scores[:, 0] != 0).all()


@pytest.mark.parametrize("function", [curved, pairs, product_of])
def test_symmetry(function: Callable[[Tensor], Tensor]) -> None:
    """Exact values go with their features, wherever these stand."""
    x, order = noise(5, 5).double(), torch.tensor([3, 0, 4, 1, 2])
    moved = ShapleyValues(lambda z: function(z[:, torch.argsort(order)])).attribute(x[:, order])
    assert_same(moved, ShapleyValues(function).attribute(x)[:, order])


@pytest.mark.parametrize("explain", SHAPLEY)
@pytest.mark.parametrize("function", [curved, pairs, product_of, additive])
@pytest.mark.parametrize("baseline", [0.3, noise(5, 6, seed=4)], ids=["number", "row-each"])
def test_efficiency(explain: str, function: Callable[[Tensor], Tensor], baseline: Any) -> None:
    x = noise(5, 6)
    start = baseline if isinstance(baseline, Tensor) else torch.full((5, 6), baseline)
    scores = EXPLAIN[explain](function, x, baseline)
    assert_same(scores.sum(1), function(x) - function(start), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SAMPLING)
def test_efficiency_of_every_output(name: str) -> None:
    row = case(name, "volume", target=None)
    x, module = row.subject.inputs, row.subject.module
    masked = row.arguments.get("feature_mask")
    held = 1.0 if masked is None else torch.bincount(masked.flatten())[masked]
    with torch.no_grad():
        change = module(x) - module(0 * x)
    assert_same((row.attribute(fusum.attr) / held).sum(-1), change)


# Orders.


def mean_gain(function: Callable[[Tensor], Tensor], x: Tensor, orders: list[list[int]]) -> Tensor:
    """By hand: what features gain on average over orders, from zeros on."""
    total = torch.zeros_like(x)
    for order in orders:
        row = torch.zeros_like(x)
        for feature in order:
            before = function(row)
            row[:, feature] = x[:, feature]
            total[:, feature] += (function(row) - before) / len(orders)
    return total


@pytest.mark.parametrize("n", [1, 4, 5])
@pytest.mark.parametrize("antithetic", [False, True])
def test_orders_by_hand(n: int, antithetic: bool) -> None:
    x = noise(3, 5).double()
    torch.manual_seed(4)
    drawn = [torch.randperm(5).tolist() for _ in range(n - n // 2 if antithetic else n)]
    orders = [o for order in drawn for o in (order, order[::-1])][:n] if antithetic else drawn
    torch.manual_seed(4)
    found = ShapleyValueSampling(curved).attribute(x, n_samples=n, antithetic=antithetic)
    assert_same(found, mean_gain(curved, x, orders).float())


@pytest.mark.parametrize("n", [2, 6])
def test_antithetic_orders_are_exact_for_interactions_of_two(n: int) -> None:
    """In one of an order and its reverse a feature meets each other one."""
    x = noise(5, 6).double()
    exact = ShapleyValues(pairs).attribute(x)
    seed()
    assert_same(ShapleyValueSampling(pairs).attribute(x, n_samples=n, antithetic=True), exact)
    plain = ShapleyValueSampling(pairs).attribute(x, n_samples=n)
    assert (plain - exact).abs().max() > 0.1


def test_antithetic_orders_err_less() -> None:
    x = noise(5, 6).double()
    triples = lambda x: pairs(x) + sum(x[:, [*three]].prod(1) for three in combinations(range(6), 3)) / 4  # noqa: E731
    exact = ShapleyValues(triples).attribute(x)
    errors = {False: 0.0, True: 0.0}
    for antithetic in errors:
        seed()
        for _ in range(30):
            found = ShapleyValueSampling(triples).attribute(x, n_samples=6, antithetic=antithetic)
            errors[antithetic] += float(((found - exact) ** 2).mean())
    assert errors[True] < errors[False] / 3


def test_sampling_approaches_the_exact_values() -> None:
    x = noise(3, 5).double()
    seed()
    found = ShapleyValueSampling(curved).attribute(x, n_samples=4000)
    assert_same(found, ShapleyValues(curved).attribute(x), rtol=0, atol=0.05)


# What goes through a score.


@pytest.mark.parametrize("name", [name for name in METHODS if name != "FeaturePermutation"])
def test_missing_values_spread_to_their_own_example_only(name: str) -> None:
    """NaN in an input makes the output NaN wherever that feature is there."""
    row = case(name, "mlp")
    x = row.subject.inputs.clone()
    x[1, 3] = torch.nan
    found = row.attribute(fusum.attr, inputs=x)
    assert found[1, 3].isnan()
    assert found[1].isnan().all() or name == "ShapleyValueSampling"  # where others may have joined before it
    assert_same(found[[0, 2, 3, 4]], row.attribute(fusum.attr)[[0, 2, 3, 4]])


def test_features_beyond_exact_numbers() -> None:
    """So many features that their subsets have no numbers in float64."""
    x = noise(2, 300)
    found = ShapleyValueSampling(lambda x: (x**2).sum(1)).attribute(x, n_samples=4)
    assert_same(found, x**2, rtol=1e-3, atol=1e-4)
    same = ShapleyValueSampling(lambda x: (tokens(300) * x).sum(1)).attribute(torch.ones(2, 300), n_samples=4)
    assert_same(same, tokens(300).float().expand(2, 300), rtol=0, atol=0)


@pytest.mark.parametrize("name", [*METHODS[:4], "Lime", "KernelShap"])
@pytest.mark.parametrize("inputs", [1, 2])
def test_masks_of_one_number_an_element_in_any_order(name: str, inputs: int) -> None:
    """Of values as in the baseline, too, the others' scores are not taken for theirs."""
    x = (torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]]), torch.tensor([[5.0, 4.0, 0.0], [0.0, 6.0, 7.0]]))[:inputs]
    masks = (torch.tensor([[2, 0, 1]]), torch.tensor([[1, 2, 0]]))[:inputs]

    def found(attr: Any) -> Any:
        seed()
        return getattr(attr, name)(lambda *xs: sum((x * tokens(3)).sum(1) for x in xs)).attribute(x, feature_mask=masks)

    assert_same(found(fusum.attr), found(captum_attr), rtol=1e-4, atol=1e-4)
