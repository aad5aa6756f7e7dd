"""What a model computes out of a rule's reach: in a thread, a vmap or an autograd function of its own."""

from __future__ import annotations

import warnings
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from ..errors import StrictError
from ..plan.spec import Gradient, Guided, Relevance, Rule
from ..settings import current
from .names import operators

_NONLINEAR = frozenset(f"{name}Backward0" for name in operators("node"))
# Rules under which models were looked at; one look a model and rule.
_seen: WeakKeyDictionary[Any, set[type]] = WeakKeyDictionary()


def check_reach(rule: Rule, model: Any, out: Tensor) -> None:
    """Warn, or raise if strict, where a graph holds nodes that a rule should have replaced."""
    if isinstance(rule, Gradient):
        return
    try:
        seen = _seen.setdefault(model, set())
    except TypeError:  # a callable that cannot be referred to weakly is looked at each time
        seen = set()
    if type(rule) in seen:
        return
    seen.add(type(rule))
    names = ", ".join(sorted(_unreached(rule, out)))
    if not names:
        return
    text = f"{type(rule).__name__}: {names} ran in a thread, a vmap or an autograd function of the model's own"
    if current().strict:
        raise StrictError(f"strict: {text}: the rule does not reach it")
    warnings.warn(f"{text}: the rule does not reach it, and its own gradient is taken", UserWarning, stacklevel=2)


def _unreached(rule: Rule, out: Tensor) -> set[str]:
    replaced = {"ReluBackward0"} if isinstance(rule, Guided) else _NONLINEAR
    if not isinstance(rule, (Guided, Relevance)):
        replaced = {"ReluBackward0", *_NONLINEAR}
    found: set[str] = set()
    waiting, known = [out.grad_fn], {out.grad_fn}
    while waiting:
        node = waiting.pop()
        if node is None:
            continue
        name = node.name()
        function: Any = getattr(type(node), "_forward_cls", None)  # the class of an autograd function in Python
        own = function is not None and not function.__module__.startswith("fusum.")
        if name in replaced or (own and not isinstance(rule, Guided)):
            found.add(name.removesuffix("0").removesuffix("Backward"))
        for following, _ in node.next_functions:
            if following not in known:
                known.add(following)
                waiting.append(following)
    return found
