"""Rows of evaluation sets → requests: a prompt, and the choices of what may follow it.

They are read, truncated to a model's context and checked against its vocabulary here,
once, and serve every model of that context and vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from merging import tasks
from merging.evaluation.truncation import truncate
from merging.runtime import storage
from merging.runtime.errors import nearest
from merging.runtime.storage import Folder
from merging.tasks import EvalSet
from merging.tasks.metrics import METRICS

# More choices than this go behind a second copy of their prompt.
MAX_CHOICES, MAX_TAIL = 32, 512
_NO_PROMPT = np.zeros(0, np.int32)


class Request(NamedTuple):
    """One row of a batch.

    Attributes:
      prefix: the token that the model sees first: BOS, or what stands for it.
      prompt: ids [P].
      choices: ids [L] of each continuation; none where the model is to generate.
    """

    prefix: int
    prompt: np.ndarray
    choices: list[np.ndarray]

    @property
    def tail(self) -> int:
        """Tokens of the row that stand behind the prompt."""
        return sum(len(choice) - 1 for choice in self.choices)


# How a model is called: () to score rows, or to generate, with how many tokens at most
# and those that end a text.
Call = tuple[()] | tuple[int, tuple[int, ...]]
# Where the answers to M rows are: of each its request, and its choice there.
Answers = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class TemplateRequests:
    """The requests of a dataset under one prompt template.

    Attributes:
      dataset: its facts (`tasks.suites.Dataset`).
      metrics: names of those to find, the dataset's own first.
      eval_set: M rows, N examples, truncated.
      truncated: the number of examples whose prompt was.
      requests: choices of one prompt share a request; to generate, each row has its
        own.
      answers: where the answers to a ranked set's rows are; None to generate.
      unconditional: the same, for the choices behind the prefix alone; None if no
        metric asks for these.
      references: whether these only ask for the log-likelihood of the references of a
        set to generate, each its prompt's one choice; such a set has no metrics.
    """

    dataset: Any
    metrics: tuple[str, ...]
    eval_set: EvalSet
    truncated: int
    requests: tuple[Request, ...]
    answers: Answers | None
    unconditional: Answers | None
    references: bool = False

    @property
    def call(self) -> Call:
        """What the model is called with beside rows."""
        one = self.eval_set
        scored = one.ranked or self.references
        return () if scored else (one.max_new_tokens, one.end_ids)

    @functools.cached_property
    def sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of each request but the prefix, and those of them in its tail."""
        return _sizes(self.requests)

    @property
    def tokens(self) -> int:
        """Tokens that the model reads and makes."""
        made = sum(self.call[:1]) * self.eval_set.examples
        return int(self.sizes[0].sum()) + made

    @functools.cached_property
    def answers_digest(self) -> str:
        """A hash of the right answers: models are compared on the same ones."""
        # Without the number of tokens, which is the tokenizer's and not the example's.
        one = self.eval_set
        facts = [
            [*target[0], bool(target[1]), target[4]] if one.ranked else target
            for target in one.targets
        ]
        return storage.digest(one.examples, np.asarray(one.groups).tolist(), facts)


@dataclasses.dataclass(frozen=True, eq=False)
class BareRequests:
    """Requests of no dataset: what another program asks, and reads the answers of.

    Attributes:
      requests: as of a `TemplateRequests`.
      call: as of a `TemplateRequests`.
    """

    requests: tuple[Request, ...]
    call: Call = ()

    @functools.cached_property
    def sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of each request but the prefix, and those of them in its tail."""
        return _sizes(self.requests)

    @property
    def tokens(self) -> int:
        """Tokens that the model reads and makes."""
        return int(self.sizes[0].sum()) + sum(self.call[:1]) * len(self.requests)


@dataclasses.dataclass(frozen=True, eq=False)
class Requests:
    """What to ask models, from `requests`.

    Attributes:
      sets: a dataset's prompt templates one after the other.
      kept: the batches that were made of them (see `batches.prepare`).
    """

    sets: tuple[TemplateRequests | BareRequests, ...]
    kept: dict = dataclasses.field(default_factory=dict, repr=False)

    def only(self, datasets: Iterable[str]) -> "Requests":
        """Return those of some datasets, to be cut into batches on their own."""
        names = set(datasets)
        return Requests(tuple(one for one in self.sets if one.dataset.name in names))


def requests(
    suite: tasks.Suite,
    split: str,
    *,
    datasets: Iterable[str] | None = None,
    count: int | None = None,
    metrics: Sequence[str] = (),
    references: bool = False,
    context: int,
    vocab_size: int,
    cache_dir: Folder | str | None = None,
    read: Callable[[TemplateRequests], None] | None = None,
) -> Requests:
    """Read a suite's evaluation sets as requests, for any number of models.

    Args:
      suite: whose.
      split: "train", "validation" or "test".
      datasets: names; all of the suite's by default.
      count: the first examples of each dataset, all of one that has fewer.
      metrics: names of those to find beside each dataset's own, where they fit.
      references: whether to ask for the log-likelihood of the right answers also where
        texts are generated; of ranked ones it is known anyhow.
      context: the most tokens that the models see, the prefix token among them; of a
        longer prompt the end is kept.
      vocab_size: rows of their embeddings.
      cache_dir: where to keep the rows.
      read: told of each dataset and prompt template when it has been read.

    Raises:
      UserError: an unknown dataset, metric or split; tokens that the models don't
        know; answers that leave no room for a prompt; and as `tasks.load_suite`.
    """
    found = []
    for name in dataset_names(suite, datasets):
        of, wanted = suite.dataset(name), metrics_of(suite, name, metrics)
        for eval_set in tasks.load_suite(
            suite,
            split,
            count,
            datasets=[name],
            longest=context
            + 1,  # one more than fits, so that it is seen to be too long
            cache_dir=cache_dir,
            fewer=True,
        ):
            eval_set, truncated = truncate(eval_set, context, vocab_size)
            found.append(template_requests(of, wanted, eval_set, truncated))
            if read is not None:
                read(found[-1])
            if references and not eval_set.ranked:
                found.append(reference_requests(of, eval_set, truncated))
    return Requests(tuple(found))


def dataset_names(suite: tasks.Suite, datasets: Iterable[str] | None) -> list[str]:
    """Return the chosen datasets' names in the suite's order; all for None.

    Raises:
      UserError: an unknown one.
    """
    every = [dataset.name for dataset in suite.datasets]
    if datasets is None:
        return every
    chosen = {suite.dataset(name).name for name in datasets}
    return [name for name in every if name in chosen]


def metrics_of(
    suite: tasks.Suite, dataset: str, metrics: Sequence[str] = ()
) -> tuple[str, ...]:
    """Return the metrics of a dataset: its own, then those of `metrics` that fit it.

    Raises:
      UserError: an unknown one.
    """
    for metric in metrics:
        if metric not in METRICS:
            raise nearest("metric", metric, METRICS)
    own = suite.dataset(dataset).metric
    fitting = (m for m in metrics if METRICS[m].ranked == METRICS[own].ranked)
    return tuple(dict.fromkeys((own, *fitting)))


def template_requests(
    dataset: Any, metrics: tuple[str, ...], eval_set: EvalSet, truncated: int = 0
) -> TemplateRequests:
    """Return the requests of an evaluation set that is no longer than the context."""
    prompts = _rows(eval_set.prompts, eval_set.prompt_lengths)
    choices = _rows(eval_set.continuations, eval_set.continuation_lengths)
    begun = functools.partial(_request, eval_set)
    found: list[Request] = []
    answers = unconditional = None
    if not eval_set.ranked:
        found = [begun(prompt) for prompt in prompts]
    else:
        answers = _rank(found, begun, prompts, choices, eval_set.groups)
        if any(METRICS[metric].unconditional for metric in metrics):
            unconditional = _rank_unconditional(found, begun, choices)
    return TemplateRequests(
        *(dataset, metrics, eval_set, truncated, tuple(found), answers, unconditional)
    )


def reference_requests(
    dataset: Any, eval_set: EvalSet, truncated: int
) -> TemplateRequests:
    """Return what asks for the references, as far as texts are generated."""
    lengths = np.minimum(eval_set.continuation_lengths, eval_set.max_new_tokens)
    prompts = _rows(eval_set.prompts, eval_set.prompt_lengths)
    choices = _rows(eval_set.continuations, lengths)
    found: list[Request] = []
    begun = functools.partial(_request, eval_set)
    answers = _rank(found, begun, prompts, choices, eval_set.groups)
    return TemplateRequests(
        *(dataset, (), eval_set, truncated, tuple(found), answers, None),
        references=True,
    )


def opened(prompt: np.ndarray) -> Request:
    """Return a request of a prompt [P >= 1] that begins with what opens it."""
    return Request(int(prompt[0]), prompt[1:], [])


def ranked(
    prompts: Sequence[np.ndarray], choices: Sequence[np.ndarray]
) -> tuple[BareRequests, Answers]:
    """Return what asks for each choice behind its prompt, and where the answers are.

    Args:
      prompts: ids, each with what opens it; neighbours that are equal share a request.
      choices: ids of each one's choice, one or more.
    """
    found: list[Request] = []
    answers = _rank(found, opened, prompts, choices, [0] * len(prompts))
    return BareRequests(tuple(found)), answers


def _sizes(requests: Sequence[Request]) -> tuple[np.ndarray, np.ndarray]:
    tails = np.array([request.tail for request in requests])
    return np.array([len(request.prompt) for request in requests]) + tails, tails


def _rank(
    found: list[Request],
    begun: Callable[[np.ndarray], Request],
    prompts,
    choices,
    groups,
) -> Answers:
    """Ask for every row's choice behind its prompt, in requests added to `found`.

    Neighbours of one example (group) and one prompt share a request.
    """
    at, previous = [], None
    for prompt, choice, group in zip(prompts, choices, groups, strict=True):
        key = (group, prompt.tobytes())
        if key != previous or _is_full(found[-1], choice):
            found.append(begun(prompt))
            previous = key
        found[-1].choices.append(choice)
        at.append((len(found) - 1, len(found[-1].choices) - 1))
    requests, places = np.array(at).T
    return requests, places


def _rank_unconditional(
    found: list[Request], begun: Callable[[np.ndarray], Request], choices
) -> Answers:
    """Ask for every row's choice behind the prefix alone, for equal ones once."""
    unlike = {choice.tobytes(): choice for choice in choices}
    number = {key: i for i, key in enumerate(unlike)}
    nothing = [_NO_PROMPT] * len(unlike)
    where = _rank(found, begun, nothing, unlike.values(), [0] * len(unlike))
    rows = [number[choice.tobytes()] for choice in choices]
    return where[0][rows], where[1][rows]


def _is_full(request: Request, choice: np.ndarray) -> bool:
    tail = request.tail + len(choice) - 1
    return len(request.choices) == MAX_CHOICES or tail > MAX_TAIL


def _request(eval_set: EvalSet, prompt: np.ndarray) -> Request:
    # A tokenizer that opens texts with nothing leaves that to the prompt's own first
    # token, if it has one.
    if eval_set.bos_id is not None:
        return Request(eval_set.bos_id, prompt, [])
    if len(prompt):
        return opened(prompt)
    return Request(eval_set.prefix_id, prompt, [])


def _rows(table: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """Return the rows without padding."""
    return [row[:length] for row, length in zip(table, lengths, strict=True)]
