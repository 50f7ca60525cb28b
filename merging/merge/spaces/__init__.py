"""Merging adapters as adapters, in a space of their own (the setting `space`)."""

from merging.merge.spaces.inputs import WEIGHTS, open_adapters
from merging.merge.spaces.output import Output
from merging.merge.spaces.space import SPACES

__all__ = ["SPACES", "WEIGHTS", "Output", "open_adapters"]
