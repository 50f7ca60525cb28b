"""The config.json of a checkpoint, read as something a stranger wrote."""

import sys
from collections.abc import Mapping
from typing import Any

from merging.models.config import DTYPES
from merging.runtime.errors import UserError

# No model is larger; a number beyond is a mistake or a trap.
_LARGEST_SIZE, _MOST_LAYERS = 2**31 - 1, 10_000
_LARGEST_NUMBER = sys.float_info.max  # beyond, a whole number becomes no float
_LONGEST_FAULT = 300


class Fields:
    """Values of a config.json; what is wrong with them is collected, and told at once.

    Args:
      values: the file's object.

    Attributes:
      values: the same.
      faults: what was wrong so far, a line each.
    """

    def __init__(self, values: Mapping[str, Any]):
        self.values = values
        self.faults: list[str] = []

    def wrong(self, fault: str) -> None:
        """Note a fault; of a long one, the beginning."""
        cut = fault[:_LONGEST_FAULT]
        self.faults.append(fault if cut == fault else f"{cut} …")

    def require_sound(self, model: str) -> None:
        """Raise one UserError with all faults, if there are any."""
        if self.faults:
            raise UserError(
                f"this config.json describes no {model} that can be built here:\n  "
                + "\n  ".join(self.faults)
            )

    def size(self, name: str, default: int | None = None) -> int:
        """Return a positive whole number; the default where it is absent or null."""
        value = self.values.get(name)
        value = default if value is None else value
        most = _MOST_LAYERS if name == "num_hidden_layers" else _LARGEST_SIZE
        if value is None:
            self.wrong(f"{name} is missing")
        elif type(value) is not int or not 0 < value <= most:
            self.wrong(f"{name} = {value!r} is no number from 1 to {most}")
        else:
            return value
        return 1

    def number(self, name: str, default: float | None = None) -> float | None:
        """Return a positive number; the default where it is absent or null."""
        value = self.values.get(name)
        if value is None:
            return default
        if type(value) not in (int, float) or not 0 < value <= _LARGEST_NUMBER:
            self.wrong(f"{name} = {value!r} is no positive number")
            return default
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """Return true or false; the default where it is absent or null."""
        value = self.values.get(name)
        if value is not None and type(value) is not bool:
            self.wrong(f"{name} = {value!r} is neither true nor false")
        return value if type(value) is bool else default

    def only(self, name: str, supported: Any, default: Any) -> None:
        """Note a fault unless a value is the one that is supported here."""
        value = self.values.get(name, default)
        if value != supported:
            self.wrong(f"{name} = {value!r} is not supported, only {supported!r}")

    def shape(self, *, tied: bool) -> dict[str, Any]:
        """Return the sizes that all families share, as fields of a decoder.

        Args:
          tied: whether the embeddings are tied where the file doesn't say.
        """
        d_model, heads = self.size("hidden_size"), self.size("num_attention_heads")
        dtype = self.values.get("dtype", self.values.get("torch_dtype"))
        dtype = dtype if dtype in DTYPES else "float32"
        return {
            "vocab_size": self.size("vocab_size"),
            "d_model": d_model,
            "layers": self.size("num_hidden_layers"),
            "heads": heads,
            "kv_heads": self.size("num_key_value_heads", heads),
            "head_dim": self.size("head_dim", max(d_model // heads, 1)),
            "d_ff": self.size("intermediate_size"),
            "norm_eps": self.number("rms_norm_eps", 1e-6),
            "tied_embeddings": self.flag("tie_word_embeddings", tied),
            "scaled_embeddings": False,
            "max_length": self.size("max_position_embeddings", 2048),
            "bos_id": self._first_token(),
            "dtype": dtype,
            "param_dtype": dtype,
        }

    def local_layers(self, default: tuple[bool, ...]) -> tuple[bool, ...]:
        """Return which layers are local: as `layer_types` has it, or the default."""
        kinds = self.values.get("layer_types")
        if kinds is None:
            return default if any(default) else ()
        known = {"sliding_attention": True, "full_attention": False}
        # Compared, not looked up: a stranger's list may hold what has no hash.
        if not isinstance(kinds, list) or any(kind not in [*known] for kind in kinds):
            self.wrong(f"layer_types: each must be one of {list(known)}, not {kinds!r}")
            return ()
        local = tuple(known[kind] for kind in kinds)
        return local if any(local) else ()

    def _first_token(self) -> int:
        """Return what opens a sequence: BOS, or where there is none the end mark.

        A family without BOS separates documents by the end mark.
        """
        for name in ("bos_token_id", "eos_token_id"):
            value = self.values.get(name)
            value = value[0] if isinstance(value, list) and value else value
            if type(value) is int and value >= 0:
                return value
        return 0
