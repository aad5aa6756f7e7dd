"""``captum.attr._core.lime``: the similarity function to give to Lime."""

from ..lime import Lime, LimeBase, get_exp_kernel_similarity_function

__all__ = ["Lime", "LimeBase", "get_exp_kernel_similarity_function"]
