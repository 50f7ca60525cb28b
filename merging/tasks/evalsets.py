"""What evaluation needs of a dataset, as arrays; through seqio, or from disk."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from merging.runtime.errors import UserError, nearest
from merging.runtime.storage import Folder
from merging.tasks import rows
from merging.tasks.backend import load_seqio
from merging.tasks.errors import require_none
from merging.tasks.metrics import rank_target, seqio_metric
from merging.tasks.rows import Row
from merging.tasks.suites import Suite, ranked


@dataclass(frozen=True, eq=False)
class EvalSet:
    """A dataset to evaluate: M rows of prompt and continuation, N examples.

    Attributes:
      dataset: its name.
      prompt: the name of its prompt template; "" if its texts are prompts.
      bos_id: the id that opens every text; None: a text's own first token does.
      prefix_id: the id that stands before a text without a prompt.
      ranked: True: the rows are the choices of the examples, to be scored;
        False: a row is an example, to be continued and compared with its target.
      prompts, prompt_lengths: int32 [M, P] padded on the right with 0, and [M].
      continuations, continuation_lengths: int32 [M, L] and [M]: the choices, or the
        references without their end mark.
      groups: [M], the example that a row belongs to, 0..N-1, ascending.
      targets: M postprocessed targets, the metrics' first argument.
      metrics: functions ``(targets, scores | predictions) -> {name: value}``.
      decode: ids → text.
      postprocess: ``(row, text) -> prediction``, the Task's own.
      end_ids: the ids of which any ends a generated text.
      max_new_tokens: how far to generate; 0 for ranked.
    """

    dataset: str
    prompt: str
    bos_id: int | None
    prefix_id: int
    ranked: bool
    prompts: np.ndarray
    prompt_lengths: np.ndarray
    continuations: np.ndarray
    continuation_lengths: np.ndarray
    groups: np.ndarray
    targets: Sequence[Any]
    metrics: tuple[Callable[..., dict], ...]
    decode: Callable[[Sequence[int]], str]
    postprocess: Callable[[int, str], Any]
    end_ids: tuple[int, ...]
    max_new_tokens: int

    @property
    def examples(self) -> int:
        """N, the number of examples."""
        return int(self.groups[-1]) + 1


def load(
    task: str,
    split: str,
    count: int | None = None,
    *,
    dataset: str | None = None,
    max_length: int | None = None,
) -> EvalSet:
    """Return a registered seqio Task as an evaluation set. Imports TensorFlow.

    Args:
      task: a Task with ``inputs`` and ``targets``; one with metrics on scores must
        have t5's ``idx`` (example, choice) and ``is_correct``.
      split: one of the Task's.
      count: take the first examples only.
      dataset: the name to report; the Task's by default.
      max_length: refuse a prompt that, with its longest answer, has more tokens.

    Raises:
      UserError: unknown task or split; no or too few examples; fewer than two
        choices; not exactly one right choice; an empty choice or target; too long.
    """
    seqio = load_seqio()
    if task not in seqio.TaskRegistry.names():
        raise nearest("task", task, seqio.TaskRegistry.names())
    provider = seqio.TaskRegistry.get(task)
    vocabulary = provider.output_features["targets"].vocabulary
    name = dataset or task
    metrics = provider.score_metric_fns or provider.predict_metric_fns
    return _build(
        rows.of_task(provider, split, name, count),
        split,
        count,
        max_length,
        provider.postprocessor,
        dataset=name,
        prompt="",
        ranked=bool(provider.score_metric_fns),
        metrics=tuple(metrics),
        decode=vocabulary.decode,
        **_marks(vocabulary),
    )


def _marks(vocabulary: Any) -> dict[str, Any]:
    """Return what opens and ends texts, for a vocabulary that may be another's."""
    if tokenizer := getattr(vocabulary, "tokenizer", None):
        names = ("bos_id", "prefix_id", "end_ids")
        return {name: getattr(tokenizer, name) for name in names}
    bos_id, eos_id = vocabulary.bos_id, vocabulary.eos_id
    prefix_id = eos_id if bos_id is None else bos_id
    return {"bos_id": bos_id, "prefix_id": prefix_id, "end_ids": (eos_id,)}


def load_suite(
    suite: Suite,
    split: str,
    count: int | None = None,
    *,
    datasets: Sequence[str] | None = None,
    max_length: int | None = None,
    longest: int | None = None,
    cache_dir: Folder | str | None = None,
    fewer: bool = False,
) -> list[EvalSet]:
    """Return a suite's evaluation sets, without TensorFlow if they are on disk.

    A dataset with several prompt templates gives a set for each, one after the other.

    Args:
      suite: whose datasets.
      split: "train", "validation" or "test".
      count: the first examples of each dataset; all by default.
      datasets: names; all of the suite's by default, in its order.
      max_length: as in ``load``.
      longest: tokens of a prompt's end that are kept, and of an answer's begin: one
        text out of measure does not make a table of its width.
      cache_dir: where to keep the rows.
      fewer: take all of a dataset that has less than ``count`` examples.

    Raises:
      UserError: as ``load``.
    """
    names = [d.name for d in suite.datasets] if datasets is None else list(datasets)
    suite.examples(split)
    tables = rows.of_suite(suite, split, names, cache_dir, count)
    tokenizer, sets = suite.tokenizer, []
    for name in names:
        dataset, how = suite.dataset(name), suite.source.generation(name)
        for prompt, task in suite.evaluations(name).items():
            kept = count
            if fewer and count is not None:
                kept = min(count, rows.examples(tables[task]))
            made = _build(
                tables[task],
                split,
                kept,
                max_length,
                rank_target if ranked(dataset) else functools.partial(_ended, how.stop),
                dataset=name,
                prompt=prompt,
                ranked=ranked(dataset),
                metrics=(seqio_metric(dataset.metric),),
                decode=tokenizer.decode,
                max_new_tokens=how.max_new_tokens,
                longest=longest,
                bos_id=tokenizer.bos_id,
                prefix_id=tokenizer.prefix_id,
                end_ids=tokenizer.end_ids,
            )
            sets.append(made)
    return sets


def _build(
    table: list[Row],
    split: str,
    count: int | None,
    max_length: int | None,
    postprocess: Callable[..., Any] | None,
    *,
    dataset: str,
    ranked: bool,
    decode: Callable[[Sequence[int]], str],
    end_ids: tuple[int, ...],
    max_new_tokens: int = 0,
    longest: int | None = None,
    **facts: Any,
) -> EvalSet:
    """Return the evaluation set of a Task's rows; ``facts`` are its other fields."""
    table, groups = _first(table, split, count, dataset, ranked)
    prompts, prompt_lengths = _padded(
        [row["inputs"][-(longest or 0) :] for row in table]
    )
    answers = [_without_end(row["targets"], end_ids[0])[:longest] for row in table]
    continuations, continuation_lengths = _padded(answers)
    errors = _errors(table, ranked, groups, continuation_lengths)
    totals = prompt_lengths + continuation_lengths
    errors += [
        f"example {groups[i]}: {totals[i]} tokens with its answer, more than the "
        f"{max_length} allowed"
        for i in np.flatnonzero(totals > (max_length or totals.max()))
    ]
    require_none(errors, dataset)
    post = postprocess or (lambda text, **_: text)
    targets = [post(_target(r, decode), example=r, is_target=True) for r in table]
    if not ranked and not max_new_tokens:
        # Room for the longest reference and its end mark, in steps of 8 so that sets
        # share a compilation.
        max_new_tokens = -(-(int(continuation_lengths.max()) + 1) // 8) * 8
    return EvalSet(
        dataset=dataset,
        ranked=ranked,
        prompts=prompts,
        prompt_lengths=prompt_lengths,
        continuations=continuations,
        continuation_lengths=continuation_lengths,
        groups=groups,
        targets=tuple(targets),
        decode=decode,
        postprocess=functools.partial(_prediction, postprocess, table),
        end_ids=end_ids,
        max_new_tokens=max_new_tokens,
        **facts,
    )


def _first(
    table: list[Row], split: str, count: int | None, dataset: str, ranked: bool
) -> tuple[list[Row], np.ndarray]:
    """Return the rows of the first ``count`` examples, and which example each is of."""
    groups = np.arange(len(table), dtype=np.int32)
    if ranked:
        missing = {"idx", "is_correct"} - set(table[0])
        if missing:
            raise UserError(
                f"dataset {dataset} has metrics on scores but no "
                f"{sorted(missing)}: give its task the preprocessor rank_classification"
            )
        table = sorted(table, key=lambda row: tuple(row["idx"]))
        examples = [int(row["idx"][0]) for row in table]
        groups = np.unique(examples, return_inverse=True)[1].astype(np.int32)
    available = int(groups[-1]) + 1
    count = available if count is None else count
    if not 1 <= count <= available:
        raise UserError(
            f"dataset {dataset} ({split}): {count} examples asked for, "
            f"it has {available}"
        )
    kept = int(np.searchsorted(groups, count))
    return table[:kept], groups[:kept]


def _errors(table, ranked: bool, groups, continuation_lengths) -> list[str]:
    empty = "choice" if ranked else "target"
    errors = [
        f"example {groups[i]}: a {empty} without a token"
        for i in np.flatnonzero(continuation_lengths == 0)
    ]
    if ranked:
        right = np.bincount(groups, [bool(row["is_correct"]) for row in table])
        for i, choices in enumerate(np.bincount(groups)):
            if choices < 2:
                errors.append(f"example {i}: {choices} choice, needs 2 or more")
            elif right[i] != 1:
                errors.append(f"example {i}: {int(right[i])} right choices, needs 1")
    return errors


def _prediction(postprocess, table: list[Row], row: int, text: str) -> Any:
    if postprocess is None:
        return text
    return postprocess(text, example=table[row], is_target=False)


def _ended(stop: tuple[str, ...], text: str, is_target: bool = False, **_: Any) -> str:
    """Return a generated text up to where it stops, without white space around it."""
    if is_target:
        return text
    return text[
        : min((i for s in stop if (i := text.find(s)) >= 0), default=None)
    ].strip()


def _target(row: Row, decode: Callable) -> str:
    """Return the text as it was before tokenising, as seqio's Evaluator prefers it."""
    text = row.get("targets_pretokenized")
    if text is None:
        return decode(row["targets"].tolist())
    return text.decode() if isinstance(text, bytes) else str(text)


def _without_end(ids: np.ndarray, eos_id: int) -> np.ndarray:
    return ids[:-1] if len(ids) and ids[-1] == eos_id else ids


def _padded(sequences: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.array([len(s) for s in sequences], np.int32)
    table = np.zeros((len(sequences), max(lengths.max(), 1)), np.int32)
    table[np.arange(table.shape[1]) < lengths[:, None]] = np.concatenate(sequences)
    return table, lengths
