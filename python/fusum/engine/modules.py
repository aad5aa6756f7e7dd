"""The modules of a model, and the hooks on them: asked at every call, so without what takes long."""

from __future__ import annotations

from typing import Any

from torch import nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def modules_of(model: Any) -> list[nn.Module]:
    """A module and those inside it, each once; none of what is no module."""
    if not isinstance(model, nn.Module):
        return []
    found = [model]
    seen = {model}
    for module in found:  # grows meanwhile
        inner: Any = module._modules
        for child in inner.values():
            if child is not None and child not in seen:
                seen.add(child)
                found.append(child)
    return found


def has_hooks(module: nn.Module) -> bool:
    """Whether a module, not those inside it, has hooks."""
    return any(map(vars(module).get, _HOOKS))
