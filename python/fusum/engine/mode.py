"""A dispatch mode as torch's, without what torch loads for it."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode


class QuickMode(TorchDispatchMode):
    """A mode at whose first operator torch does not load torch.compile, which takes 0.8 s and 75 MB."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False
