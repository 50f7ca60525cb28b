"""A model for lm-evaluation-harness: all of its tasks, answered by this evaluator.

    python -m merging.evaluation.lm_eval --model merging \\
        --model_args pretrained=MODEL,mesh=4x2x1 --tasks hellaswag --output_path scores

is the harness's own command, with everything that it takes, and one model more. Of
itself it does not look for other programs' models: importing this module is what adds
ours to its registry, also in Python:

    import merging.evaluation.lm_eval, lm_eval
    lm_eval.simple_evaluate(model="merging", model_args={"pretrained": MODEL}, …)

Texts become tokens as the harness's HF backend makes them, windows and truncations
included, so that both see the same rows. Texts are generated greedily.
"""

import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import lm_eval.models  # noqa: F401  (else its registry would know ours alone)
import numpy as np
from jax.sharding import Mesh
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from merging import tasks
from merging.evaluation import job, lm_eval_parsing
from merging.evaluation.batches import prepare
from merging.evaluation.predictions import answers
from merging.evaluation.requests import BareRequests, Requests, opened, ranked
from merging.runtime import compilations, processes, sharding
from merging.runtime.errors import UserError

NAME = "merging"
ROWS = 32  # of a call: the harness's own default, 1, is for those that can't pack
MAX_NEW_TOKENS = 256  # the HF backend's
# Tokens to generate before the texts are looked at for a stop of several tokens.
_LOOK = 64
# What a request to generate may say beside where to stop and how far to go.
_SAMPLING = ("do_sample", "temperature")
_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")

Tokens = list[int]


@register_model(NAME)
class MergingLM(LM):
    """A checkpoint of a known family, on all devices of all processes.

    Args:
      pretrained: its folder, as `merging evaluate` takes it; the harness names its
        results after this word.
      checkpoint: the same.
      tokenizer: folder of its tokenizer; the checkpoint's own by default.
      mesh: devices as DATAxFSDPxTENSOR; all of them for data by default. In Python
        also a mesh, or None for one device.
      dtype: of parameters and activations; as stored by default.
      max_length: the most tokens that it sees; what its config says by default.
      batch_size: rows of a call; 32 for the harness's defaults, 1 and auto.
      device, max_batch_size: of the harness's command, not used here: JAX_PLATFORMS
        says what devices there are.

    Raises:
      UserError: a checkpoint, tokenizer or mesh that can't be used.
    """

    def __init__(
        self,
        pretrained: str = "",
        checkpoint: str = "",
        tokenizer: str = "",
        mesh: str | Mesh | None = "",
        dtype: str = "",
        max_length: int = 0,
        batch_size: int | str = ROWS,
        device: str | None = None,
        max_batch_size: int | None = None,
    ):
        super().__init__()
        if not (pretrained or checkpoint):
            raise UserError("no checkpoint to evaluate: --model_args pretrained=DIR")
        self._mesh = _mesh(mesh) if isinstance(mesh, str) else mesh
        self._model = model = job.open_model(checkpoint or pretrained, tokenizer)
        if not model.tokenizer:
            raise UserError(
                f"{model.uri} holds no tokenizer, and the harness's tasks are texts: "
                "name the folder of its tokenizer, tokenizer=DIR."
            )
        self._tokenizer = tasks.open_tokenizer(model.tokenizer)
        self.max_length = int(max_length) or model.config.max_length
        self.batch_size = ROWS if batch_size in (1, "1", "auto") else int(batch_size)
        self._predictor = job.load(model, dtype or None, self._mesh)
        self._pieces: list[str] = []

    def loglikelihood(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Return each continuation's log p behind its context, and if it is greedy's.

        Args:
          requests: their arguments are (context, continuation).
          disable_tqdm: not used.
        """
        pairs = [request.args for request in requests]
        found = self._score(*self._encoded(pairs))
        for pair, answer in zip(pairs, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", pair, answer)
        return found

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log p of whole texts, in windows that predict each token once.

        Args:
          requests: their arguments are (text,).
          disable_tqdm: not used.
        """
        texts = [request.args[0] for request in requests]
        owners, contexts, continuations = [], [], []
        for owner, ids in enumerate(self._encode(texts)):
            prefix = self._tokenizer.prefix_id
            windows = get_rolling_token_windows(ids, prefix, self.max_length, 1)
            for context, continuation in map(make_disjoint_window, windows):
                owners.append(owner)
                contexts.append(context)
                continuations.append(continuation)
        found = [0.0] * len(texts)
        for owner, (log_p, _) in zip(
            owners, self._score(contexts, continuations), strict=True
        ):
            found[owner] += log_p
        for text, answer in zip(texts, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), answer)
        return found

    def generate_until(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[str]:
        """Return the greedy continuation of each context, up to where it is to stop.

        Args:
          requests: their arguments are (context, settings), of these `until`, a text
            or several, and `max_gen_toks`.
          disable_tqdm: not used.

        Raises:
          UserError: settings that ask to sample.
        """
        pairs = [request.args for request in requests]
        alike: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        for number, (_, settings) in enumerate(pairs):
            alike.setdefault(_how(settings), []).append(number)
        found = [""] * len(pairs)
        for (most, stops), numbers in alike.items():
            texts = self._generate([pairs[i][0] for i in numbers], most, stops)
            for number, text in zip(numbers, texts, strict=True):
                found[number] = text
                self.cache_hook.add_partial("generate_until", pairs[number], text)
        return found

    @property
    def tokenizer_name(self) -> str:
        """What the harness keeps rendered prompts under."""
        return self._model.tokenizer.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return the template that prompts are put in; "" if they are not asked to."""
        if not chat_template:
            return ""
        return tasks.open_tokenizer(self._model.tokenizer, True).template

    def apply_chat_template(
        self,
        chat_history: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
    ) -> str:
        """Return messages in the tokenizer's chat template.

        Args:
          chat_history: each has a `role` and `content`.
          add_generation_prompt: False: the last message is begun, and goes on.
        """
        chat = tasks.open_tokenizer(self._model.tokenizer, True)
        return chat.conversation(chat_history, add_generation_prompt)

    def get_model_info(self) -> dict[str, Any]:
        """Return what the harness records of a model."""
        return {
            "model_num_parameters": self._model.parameters,
            "model_dtype": str(self._model.config.dtype),
            "model_sha": self._model.identity,
        }

    def _encode(self, texts: Sequence[str]) -> list[Tokens]:
        """Return the ids of texts with what opens them, once."""
        mark = self._tokenizer.bos_id
        found = self._tokenizer.encode_all(texts)
        if mark is None:
            return found
        # A chat template spells it out.
        return [ids if ids[:1] == [mark] else [mark, *ids] for ids in found]

    def _encoded(
        self, pairs: Sequence[tuple[str, str]]
    ) -> tuple[list[Tokens], list[Tokens]]:
        """Return contexts' and continuations' ids.

        Both are encoded together, and parted where the context alone would end; its
        trailing spaces go to the continuation, as vocabularies have words with a space
        before them.
        """
        split = []
        for context, continuation in pairs:
            text = context.rstrip()
            split.append((text, context[len(text) :] + continuation))
        alone = list(dict.fromkeys(text for text, _ in split if text))
        begun = dict(zip(alone, self._encode(alone), strict=True))
        both = [i for i, (text, _) in enumerate(split) if text]
        whole = self._encode(["".join(split[i]) for i in both])
        wholes = dict(zip(both, whole, strict=True))
        bare = [i for i, (text, _) in enumerate(split) if not text]
        plain = self._tokenizer.encode_all(["".join(split[i]) for i in bare])
        for i, ids in zip(bare, plain, strict=True):
            prefix = self._tokenizer.prefix_id
            wholes[i] = ids if ids[:1] == [prefix] else [prefix, *ids]
        contexts = [begun[t] if t else wholes[i][:1] for i, (t, _) in enumerate(split)]
        rest = [wholes[i][len(ids) :] for i, ids in enumerate(contexts)]
        return contexts, rest

    def _score(
        self, contexts: Sequence[Tokens], continuations: Sequence[Tokens]
    ) -> list[tuple[float, bool]]:
        """Return log p of each continuation, and whether it is the greedy one.

        A context loses its beginning if both are too long; equal ones share a row.
        """
        if not contexts:
            return []
        prompts = []
        for context, continuation in zip(contexts, continuations, strict=True):
            room = self.max_length + 1 - len(continuation)
            if not continuation or room < 1:
                raise UserError(
                    f"a continuation of {len(continuation)} tokens: it must have one "
                    f"or more, and at most the model's {self.max_length}"
                )
            prompts.append(context[-room:])
        order = sorted(range(len(prompts)), key=prompts.__getitem__)
        asked, (requests, places) = ranked(
            [np.array(prompts[i], np.int32) for i in order],
            [np.array(continuations[i], np.int32) for i in order],
        )
        table = self._answers(asked, "log-likelihoods")
        log_p = table[requests, places]
        greedy = table[requests, places + table.shape[1] // 2]
        found: list[tuple[float, bool]] = [(0.0, False)] * len(order)
        for i, *answer in zip(order, log_p.tolist(), greedy.tolist(), strict=True):
            found[i] = answer[0], bool(answer[1])
        return found

    def _generate(
        self, contexts: Sequence[str], most: int, stops: tuple[str, ...]
    ) -> list[str]:
        """Return the continuations of contexts, of at most so many tokens."""
        room = self.max_length - most
        if room < 1:
            raise UserError(
                f"{most} tokens to generate leave no room for a prompt in a context of "
                f"{self.max_length}: lower max_gen_toks"
            )
        prefix = [self._tokenizer.prefix_id]
        prompts = [(ids or prefix)[-room:] for ids in self._encode(contexts)]
        made: list[Tokens] = [[] for _ in prompts]
        ends = self._ends(stops)
        ending = frozenset(ends)
        # A stop of one letter is in a token. Others may be made of several: then texts
        # are looked at on the way, and those that have one go no further.
        step = _LOOK if any(len(stop) > 1 for stop in stops) else most
        left, done = list(range(len(prompts))), 0
        while left and done < most:
            more = min(step, most - done)
            rows = tuple(opened(np.array(prompts[i] + made[i], np.int32)) for i in left)
            table = self._answers(BareRequests(rows, (more, ends)), "texts")
            for i, ids in zip(left, table.astype(int).tolist(), strict=True):
                last = next((n for n, one in enumerate(ids) if one in ending), more)
                made[i] += ids[: last + 1]
            done, step = done + more, 2 * step
            left = [i for i in left if made[i][-1] not in ending]
            left = [i for i in left if not _holds(self._text(made[i]), stops)]
        return [_until(self._text(ids), stops) for ids in made]

    def _text(self, ids: Tokens) -> str:
        return self._tokenizer.decode(ids)

    def _ends(self, stops: tuple[str, ...]) -> tuple[int, ...]:
        """Return the ids behind which no further one is needed.

        The model's end marks, and whatever holds a stop: the text is cut before it.
        """
        if stops and not self._pieces:
            # Special tokens too, which have no text, but may be named as stops.
            every = range(len(self._tokenizer))
            self._pieces = [self._tokenizer.spelled([number]) for number in every]
        holding = (i for i, piece in enumerate(self._pieces) if _holds(piece, stops))
        return tuple(dict.fromkeys((*self._tokenizer.end_ids, *holding)))

    def _answers(self, asked: BareRequests, what: str) -> np.ndarray:
        """Return the answers [R, width]; to score, log p and then whether greedy."""
        parts = 1 if self._mesh is None else sharding.batch_parts(self._mesh)
        needed = math.ceil(len(asked.requests) / parts) * parts
        batches = prepare(
            Requests((asked,)),
            batch_size=min(self.batch_size, needed),
            sharding=self._mesh and sharding.batch_sharding(self._mesh),
            compile_cost=job.compile_cost(self._model.parameters),
        )
        predictor = self._predictor._replace(score=self._predictor.score_greedy)
        with job.progress(asked.tokens, what) as shown:
            return answers(batches, predictor, shown.advance)


def _how(settings: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
    """Return the most tokens, and the texts that end one, of a request's settings."""
    said = {key: settings[key] for key in _SAMPLING if key in settings}
    if said.get("do_sample") or (said.get("temperature") and "do_sample" not in said):
        raise UserError(
            f"{said}: texts are generated greedily here; give do_sample=False "
            "(--gen_kwargs)."
        )
    most = next((settings[key] for key in _LIMITS if settings.get(key)), MAX_NEW_TOKENS)
    until = settings.get("until") or ()
    stops = (until,) if isinstance(until, str) else tuple(until)
    return int(most), tuple(stop for stop in stops if stop)


def _holds(text: str, stops: Sequence[str]) -> bool:
    return any(stop in text for stop in stops)


def _until(text: str, stops: Sequence[str]) -> str:
    """Return a text up to the first of the stops."""
    return text[: min((i for s in stops if (i := text.find(s)) >= 0), default=None)]


def _mesh(text: str) -> Mesh | None:
    """Return the mesh of `4x2x1`; one over all devices for nothing."""
    sizes = text.split("x") if text else ["-1"]
    if not 1 <= len(sizes) <= 3 or not all(s.lstrip("-").isdecimal() for s in sizes):
        raise UserError(f"mesh {text!r}: write DATAxFSDPxTENSOR, such as 4x2x1.")
    named = dict(zip(("data", "fsdp", "tensor"), map(int, sizes), strict=False))
    return job.mesh_of({"data": 1, "fsdp": 1, "tensor": 1} | named)


def main() -> int:
    """Run the harness's command, which knows our model."""
    from lm_eval.__main__ import cli_evaluate

    compilations.keep()
    processes.initialize()
    # Of several processes with one model it takes the word of the first.
    os.environ["LOCAL_RANK"] = str(processes.index())
    try:
        with lm_eval_parsing.once():
            cli_evaluate()
    except UserError as error:
        print(f"merging: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
