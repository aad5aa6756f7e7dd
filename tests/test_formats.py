"""Every class gives the eager numbers on every model format."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import fusum
import fusum.attr
from cases import SHORT, Case, on
from checkers import assert_rows_within, assert_same
from formats import FORMATS, MOST_ROWS, STATIC_BATCH, converted
from fusum.attr import IntegratedGradients, NoiseTunnel, Saliency
from models import Recorder, noise, subject

WITHOUT_LRP = [case for case in SHORT if case.chain != ("LRP",)]  # it has no rule for a product of inputs
MODELS = {"mlp": SHORT, "two_inputs": WITHOUT_LRP, "cnn": SHORT[:1], "tokens": SHORT[-1:]}


def _rows() -> Iterator[Case]:
    for model, cases in MODELS.items():
        for case in cases:
            yield replace(case, name=f"{case.name}-{model}", model=model)


@pytest.mark.parametrize("form", [form for form in FORMATS if form != "eager"])
@pytest.mark.parametrize("case", on(list(_rows())))
def test_the_eager_numbers(case: Case, form: str) -> None:
    found = case.attribute(fusum.attr, converted(case.model, form))
    assert_same(found, case.attribute(fusum.attr), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", FORMATS)
def test_each_example_has_its_own_target(form: str) -> None:
    target = [0, 1, 2, 1, 0]
    case = Case("", ("IntegratedGradients",), "mlp", {"target": target, "n_steps": 7, "internal_batch_size": 6})
    assert_same(case.attribute(fusum.attr, converted("mlp", form)), case.attribute(fusum.attr))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("rows", [1, 2, 9])
def test_other_numbers_of_examples(form: str, rows: int) -> None:
    x = noise(rows, 8, seed=rows)
    expected = IntegratedGradients(subject("mlp").module).attribute(x, target=1, return_convergence_delta=True)
    found = IntegratedGradients(converted("mlp", form)).attribute(x, target=1, return_convergence_delta=True)
    assert_same(found, expected)


@pytest.mark.parametrize("form", FORMATS)
def test_repeated_calls_do_not_drift(form: str) -> None:
    """The JIT and the compiler specialise on what they see: a later call must still be right."""
    explainer = NoiseTunnel(Saliency(converted("mlp", form)))
    for rows in (5, 3, 5, 8):
        x = noise(rows, 8, seed=rows)
        torch.manual_seed(1)
        found = explainer.attribute(x, target=2, nt_samples=2)
        torch.manual_seed(1)
        assert_same(found, NoiseTunnel(Saliency(subject("mlp").module)).attribute(x, target=2, nt_samples=2))


@pytest.mark.parametrize(
    ("form", "most"), [("exported_static", STATIC_BATCH), ("exported_bounded", MOST_ROWS), ("exported_dynamic", 10**6)]
)
def test_an_exported_program_sees_rows_that_it_takes(form: str, most: int) -> None:
    """A program refuses other sizes itself; that it is also given no smaller chunks than need be is seen here."""
    program = converted("mlp", form)
    seen: list[int] = []
    handle = program.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    try:
        Saliency(program).attribute(noise(10, 8), target=1)
        IntegratedGradients(program).attribute(noise(10, 8), target=1, n_steps=20)
    finally:
        handle.remove()
    assert_rows_within(seen, most)
    assert sum(seen) <= 220 + most


def test_padding_rows_are_not_explained() -> None:
    scores = Saliency(converted("mlp", "exported_static")).attribute(noise(6, 8), target=1)
    assert scores.shape == (6, 8)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_model_that_returns_several_outputs() -> None:
    class Several(torch.nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x * 2, x.sum(1)

    class Named(torch.nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"hidden": x, "logits": x * 2}

    for module in (Several(), Named()):
        for forward in (module, torch.jit.script(module)):
            assert_same(Saliency(forward).attribute(noise(3, 4), target=1)[:, 1], torch.full((3,), 2.0))


class Output(dict[str, Any]):
    """As the outputs of transformers: a mapping that also answers to attributes and integers."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


@pytest.mark.parametrize(
    "form",
    [
        lambda out: {"hidden": 2 * out, "logits": out},
        lambda out: {"first": out, "second": 2 * out},
        lambda out: [out, 2 * out],
        lambda out: (None, out, 2 * out),
        lambda out: Output(loss=out.sum(), logits=out),
    ],
    ids=["logits", "first-of-dict", "list", "none-first", "model-output"],
)
def test_which_of_several_outputs_is_explained(form: Any) -> None:
    model = subject("mlp")
    found = Saliency(lambda x: form(model.module(x))).attribute(model.inputs, target=1)
    assert_same(found, Saliency(model.module).attribute(model.inputs, target=1))


def test_bound_methods_and_callables() -> None:
    class Holder:
        def __init__(self) -> None:
            self.module = subject("mlp").module

        def score(self, x: Tensor) -> Tensor:
            return self.module(x)

        __call__ = score

    x, holder = subject("mlp").inputs, Holder()
    expected = IntegratedGradients(holder.module).attribute(x, target=1)
    for forward in (holder.score, holder, Recorder(holder.module), holder.module.forward):
        assert_same(IntegratedGradients(forward).attribute(x, target=1), expected)


def test_a_frozen_model_in_no_grad_and_twice_the_size() -> None:
    x = noise(12, 8)
    with torch.no_grad(), fusum.config(max_rows=5):
        found = IntegratedGradients(converted("mlp", "frozen")).attribute(x, target=1)
    assert_same(found, IntegratedGradients(subject("mlp").module).attribute(x, target=1))
