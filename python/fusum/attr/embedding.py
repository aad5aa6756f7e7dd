"""Embedding layers that take vectors in place of token ids, and reference tokens."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArgumentError


class InterpretableEmbeddingBase(nn.Module):
    """Stands in for an embedding layer and returns the vectors that it is given.

    Arguments:
        embedding: the layer that it stands in for.
        full_name: that layer's dotted name in its model.
    """

    def __init__(self, embedding: nn.Module, full_name: str) -> None:
        super().__init__()
        self.num_embeddings = getattr(embedding, "num_embeddings", None)
        self.embedding_dim = getattr(embedding, "embedding_dim", None)
        self.embedding = embedding
        self.full_name = full_name

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """The first argument, in whatever way it is given."""
        if not inputs and not kwargs:
            raise ArgumentError(
                f"inputs: got nothing; expected the vectors of {self.full_name!r} as the first argument"
            )
        return inputs[0] if inputs else next(iter(kwargs.values()))

    def indices_to_embeddings(self, *input: Any, **kwargs: Any) -> Tensor:
        """What the embedding layer gives for these token ids."""
        vectors: Tensor = self.embedding(*input, **kwargs)
        return vectors


class TokenReferenceBase:
    """Makes references, also called baselines, for token ids."""

    def __init__(self, reference_token_idx: int = 0) -> None:
        self.reference_token_idx = reference_token_idx

    def generate_reference(self, sequence_length: int, device: torch.device | str) -> Tensor:
        """The reference token, sequence_length times: int64 [sequence_length]."""
        return torch.full((sequence_length,), self.reference_token_idx, device=device)


def configure_interpretable_embedding_layer(
    model: nn.Module, embedding_layer_name: str = "embedding"
) -> InterpretableEmbeddingBase:
    """Put an InterpretableEmbeddingBase in the place of a model's embedding layer, and return it.

    Arguments:
        embedding_layer_name: the layer's dotted name.

    Raises:
        ArgumentError: the model has no such layer, or one stands in for it already.
    """
    layer = _submodule(model, embedding_layer_name)
    if isinstance(layer, InterpretableEmbeddingBase):
        raise ArgumentError(
            f"embedding_layer_name: got {embedding_layer_name!r}, for which an InterpretableEmbeddingBase stands in "
            "already; expected a layer that was not replaced"
        )
    warnings.warn(
        f"{embedding_layer_name} takes vectors, not token ids, until remove_interpretable_embedding_layer is called",
        UserWarning,
        stacklevel=2,
    )
    stand_in = InterpretableEmbeddingBase(layer, embedding_layer_name)
    _set_submodule(model, embedding_layer_name, stand_in)
    return stand_in


def remove_interpretable_embedding_layer(model: nn.Module, interpretable_emb: InterpretableEmbeddingBase) -> None:
    """Give a model its own embedding layer back.

    Raises:
        ArgumentError: interpretable_emb does not stand in for a layer of the model.
    """
    if _submodule(model, interpretable_emb.full_name) is not interpretable_emb:
        raise ArgumentError(
            f"interpretable_emb: got what stands in for {interpretable_emb.full_name!r} in another model"
        )
    _set_submodule(model, interpretable_emb.full_name, interpretable_emb.embedding)


def _submodule(model: nn.Module, name: str) -> nn.Module:
    if not name:
        raise ArgumentError("embedding_layer_name: got ''; expected a layer of the model")
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise ArgumentError(f"embedding_layer_name: got {name!r}; expected a layer of the model ({error})") from None


def _set_submodule(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
