"""One decoder, configured into families: plain dicts of arrays in, logits out."""

from merging.models.config import DecoderConfig, RopeScaling
from merging.models.functional import (
    BOS,
    Params,
    abstract,
    bind,
    forward,
    init,
    input_grams,
    logits,
    parameter_count,
    shift_right,
)
from merging.models.partition_rules import partition_rules, require_whole_heads
from merging.models.predictor import Predictor, likelihoods, predictor
from merging.models.sizes import FAMILIES, size, sizes

__all__ = [
    "BOS",
    "FAMILIES",
    "DecoderConfig",
    "Params",
    "Predictor",
    "RopeScaling",
    "abstract",
    "bind",
    "forward",
    "init",
    "input_grams",
    "likelihoods",
    "logits",
    "parameter_count",
    "predictor",
    "require_whole_heads",
    "partition_rules",
    "shift_right",
    "size",
    "sizes",
]
