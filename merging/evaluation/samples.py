"""What a model made of every example, as lm-evaluation-harness logs it.

A line of samples_TASK_TIME.jsonl holds the example (`doc`), what the model was asked
(`arguments`), what it answered (`resps`), the example's own metrics, and hashes that
tell whether two files are about the same examples, prompts and targets. Texts are those
of the tokens that the model was given, before a long prompt was cut.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from merging.evaluation.scores import DatasetScore, TemplateScore
from merging.runtime import storage
from merging.runtime.storage import Folder
from merging.tasks import EvalSet
from merging.tasks.metrics import METRICS


class Sample(NamedTuple):
    """An example under a prompt template.

    Attributes:
      number: of the example.
      template: the prompt template's name.
      doc: the example, as plain JSON.
      target: of the right choice its place, or the text that is wanted.
      arguments: (prompt, choice) of each choice; or one prompt and how to go on.
      answers: to each, log p or a text.
      values: {metric of ours: its value on this example alone, in 0..1}.
    """

    number: int
    template: str
    doc: Mapping[str, Any]
    target: int | str
    arguments: tuple[tuple[str, Any], ...]
    answers: tuple[float | str, ...]
    values: Mapping[str, float]


def samples(
    score: DatasetScore,
    sets: Iterable[EvalSet],
    spelled: Callable[[Iterable[int]], str],
) -> Iterator[Sample]:
    """Yield the samples of a dataset, one prompt template after the other.

    Args:
      score: with its outputs.
      sets: the examples that it is of, by prompt template.
      spelled: ids → text, special tokens as they are spelled.
    """
    for one in sets:
        template = score.templates[one.prompt]
        ends = np.searchsorted(one.groups, np.arange(1, one.examples + 1))
        starts = [0, *ends[:-1].tolist()]
        for number, rows in enumerate(zip(starts, ends.tolist(), strict=True)):
            yield _sample(one, template, number, range(*rows), spelled)


def write(
    path: Folder,
    found: Iterable[Sample],
    named: Callable[[str], tuple[str, int]],
) -> str:
    """Write samples as JSON lines, and return the hash of the task they make.

    Args:
      path: the file.
      found: the samples.
      named: a metric's name and scale in the harness.
    """
    lines, hashes = [], []
    for one in found:
        record = _record(one, named)
        kinds = ("doc_hash", "prompt_hash", "target_hash")
        hashes.append("".join(record[kind] for kind in kinds))
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    storage.write_bytes(path, "".join(lines).encode())
    return _hash("".join(hashes))


def _sample(
    one: EvalSet,
    template: TemplateScore,
    number: int,
    rows: range,
    spelled: Callable[[Iterable[int]], str],
) -> Sample:
    prompt = spelled(_ids(one.prompts, one.prompt_lengths, rows[0]))
    answers = tuple(template.outputs[i] for i in rows)
    values = {
        metric: METRICS[metric].value(counts[number].astype(np.float64), 1)
        for metric, counts in template.counts.items()
    }
    if not one.ranked:
        target = str(one.targets[rows[0]])
        doc = {"inputs": prompt, "targets": target}
        how = {"until": [], "max_gen_toks": one.max_new_tokens, "do_sample": False}
        arguments = ((prompt, how),)
    else:
        choices = [_choice(one, i, prompt, spelled) for i in rows]
        target = next(n for n, i in enumerate(rows) if one.targets[i][1])
        doc = {"inputs": prompt, "choices": choices, "label": target}
        arguments = tuple((prompt, choice) for choice in choices)
    doc = {"dataset": one.dataset} | doc
    return Sample(number, one.prompt, doc, target, arguments, answers, values)


def _choice(
    one: EvalSet, row: int, prompt: str, spelled: Callable[[Iterable[int]], str]
) -> str:
    """Return a choice with the white space that stands before it."""
    begun = _ids(one.prompts, one.prompt_lengths, row)
    ids = _ids(one.continuations, one.continuation_lengths, row)
    # Alone, some vocabularies' texts lose the space that they begin with.
    whole = spelled([*begun, *ids])
    return whole[len(prompt) :] if whole.startswith(prompt) else spelled(ids)


def _ids(table: np.ndarray, lengths: np.ndarray, row: int) -> list[int]:
    return table[row, : lengths[row]].tolist()


def _record(one: Sample, named: Callable[[str], tuple[str, int]]) -> dict[str, Any]:
    """Return a line's values, with the harness's names."""
    metrics = {}
    for metric, value in one.values.items():
        name, scale = named(metric)
        metrics[name] = scale * value
    # Log-likelihoods stand with whether they are greedy's, which is not asked here.
    ranked = isinstance(one.target, int)
    answers = [[str(a), "None"] if ranked else a for a in one.answers]
    return {
        "doc_id": one.number,
        "prompt_template": one.template,
        "doc": one.doc,
        "target": str(one.target),
        "arguments": {
            f"gen_args_{n}": {"arg_0": prompt, "arg_1": rest}
            for n, (prompt, rest) in enumerate(one.arguments)
        },
        "resps": [[answer] for answer in answers],
        "filtered_resps": answers,
        "filter": "none",
        "metrics": list(metrics),
        "doc_hash": _hash(json.dumps(one.doc, indent=2, ensure_ascii=False)),
        "prompt_hash": _hash(one.arguments[0][0]),
        "target_hash": _hash(str(one.target)),
        **metrics,
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
