"""``captum.attr._core.dataloader_attr``: what the elements of a loader's batches are for, by name."""

from ..dataloader import DataLoaderAttribution, InputRole

__all__ = ["DataLoaderAttribution", "InputRole"]
