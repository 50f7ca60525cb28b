"""The models of a merge, opened and held against each other before a weight is read."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax

from merging import checkpoints
from merging.checkpoints import Source, open_checkpoint
from merging.merge import checks
from merging.merge.statistics import label
from merging.methods import Statistics
from merging.runtime import foreign_json, hub, tree
from merging.runtime.errors import UserError, listed

# What the base is called beside the experts' names.
BASE = "the base"
# What Hugging Face's models call their output weights; not there where they are tied.
_HEAD = "lm_head.weight"
# A name that an expert may be given on the command line.
_NAME = re.compile(r"[\w.+#@-]+")
# Steps of a run, as they are given, and one more.
_STEPS, _STEP = re.compile(r"@\d+(,\d+)*$"), re.compile(r"\d+(#.*)?")


class Inputs(NamedTuple):
    """Checkpoints that can be merged.

    Attributes:
      base: None if there is none.
      experts: by name, sorted: sums then round alike whatever order they came in.
      order: the place of each in the order they were given.
      tied: output weights that repeat the embedding were left out of them.
      statistics: of each kind that is wanted, those of each expert.
    """

    base: Source | None
    experts: dict[str, Source]
    order: tuple[int, ...]
    tied: bool = False
    statistics: Mapping[Statistics, Mapping[str, Source]] = {}

    @property
    def sources(self) -> list[Source]:
        """All of them, the base first."""
        return [*([self.base] if self.base else []), *self.experts.values()]

    @property
    def first(self) -> Source:
        """The base, or the first expert that was given: it has the say on the output.

        Its order of the leaves, their dtypes, its format, config and tokenizer.
        """
        return self.sources[self.place_of_first]

    @property
    def first_leaves(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Its {path: shape and dtype}."""
        return tree.flatten(self.first.abstract)

    @property
    def place_of_first(self) -> int:
        """The place of `first` among the sources."""
        return 0 if self.base else self.order.index(0)

    @property
    def names(self) -> list[str]:
        """What to call them in messages."""
        return [*([BASE] if self.base else []), *self.experts]

    @property
    def everything(self) -> dict[str, Source]:
        """All that is read, as it is called: the models, then the statistics.

        Raises:
          UserError: an expert is called as the statistics of one are.
        """
        models = dict(zip(self.names, self.sources, strict=True))
        statistics = {
            label(kind, name): source
            for kind, of in self.statistics.items()
            for name, source in of.items()
        }
        if twice := sorted(models.keys() & statistics.keys()):
            raise UserError(
                f"{listed(twice)}: the name of an expert, and what statistics of "
                "another are called; write NAME=PATH to give another."
            )
        return models | statistics

    @property
    def abstracts(self) -> list[dict[str, jax.ShapeDtypeStruct]]:
        """{path: shape and dtype} of each."""
        return [tree.flatten(source.abstract) for source in self.sources]


def open_inputs(base: str | None, experts: Mapping[str, str]) -> Inputs:
    """Open the checkpoints and check that they can be merged.

    Raises:
      UserError: one can't be opened, they differ in leaves or shapes, or hold a dtype
        that cannot be merged; each lists every offender.
    """
    if not experts:
        raise UserError("no experts: name at least one checkpoint to merge (experts).")
    given = list(experts)
    names = sorted(experts)
    start = open_checkpoint(base) if base else None
    inputs = Inputs(
        start,
        {name: open_checkpoint(experts[name], start) for name in names},
        tuple(given.index(name) for name in names),
    )
    inputs = inputs._replace(tied=_forget_tied_heads(inputs))
    require_mergeable(inputs)
    return inputs


def require_mergeable(inputs: Inputs) -> None:
    """Raise a UserError that lists where models differ, or what can't be merged."""
    if BASE in inputs.experts:
        raise UserError(
            f"an expert may not be called {BASE!r}, as the base is: give it another "
            "name (NAME=PATH, or rename its folder)."
        )
    _require_same_leaves(inputs)
    checks.refuse_dtypes(dict(zip(inputs.names, inputs.abstracts, strict=True)))


def _forget_tied_heads(inputs: Inputs) -> bool:
    """Leave out output weights where all that are stored repeat the embedding.

    Unless every model stores them, and the one that has the say says they are not tied.
    """
    storing = [s for s in inputs.sources if checkpoints.stored_head(s)]
    if not storing or not all(map(checkpoints.repeats_embedding, storing)):
        return False
    if len(storing) == len(inputs.sources) and _says_untied(inputs.first):
        return False
    for source in storing:
        checkpoints.forget_head(source)
    return True


def _says_untied(source: Source) -> bool:
    files = checkpoints.read_auxiliary_files(source.uri)
    try:
        return foreign_json.loads(files["config.json"])["tie_word_embeddings"] is False
    except (KeyError, ValueError, TypeError):
        return False


def expert_names(uris: Sequence[str]) -> dict[str, str]:
    """Return {name: uri} of texts ``PATH``, named after its last folder, or NAME=PATH.

    A repository of the Hub is called by its name without owner and revision.

    What a name is does not depend on the other experts: random masks follow from it.
    A checkpoint given twice is merged twice, the second time as ``NAME#2``. Steps of a
    run, ``RUN@last:10`` (see `checkpoints.runs`), come in their order, as ``RUN@100``.

    Raises:
      UserError: two different checkpoints have one name; says how to name them.
    """
    given = [pair for text in _joined(uris) for pair in _named(text)]
    names: dict[str, str] = {}
    for stem, uri in given:
        name, times = stem, 1
        while name in names and names[name] == uri:
            times += 1
            name = f"{stem}#{times}"
        if name in names:
            places = [place for _, place in given]
            pairs = zip(_telling_names(places), places, strict=True)
            example = ",".join(map("=".join, pairs))
            raise UserError(
                f"{names[name]} and {uri} are both called {name!r}, and random masks "
                f"depend on the name: name the experts, such as {example}"
            )
        names[name] = uri
    return names


def _joined(uris: Sequence[str | int]) -> list[str]:
    """Return texts where a number after ``RUN@100`` is a further step of that run."""
    texts: list[str] = []
    for text in map(str, uris):
        if texts and _STEPS.search(texts[-1]) and _STEP.fullmatch(text):
            texts[-1] += f",{text}"
        else:
            texts.append(text)
    return texts


def _named(text: str) -> list[tuple[str, str]]:
    """Return the names and the places of an expert, or a run's, as it is given."""
    name, equals, uri = text.partition("=")
    if not (equals and uri and _NAME.fullmatch(name)) or os.path.exists(text):
        name, uri = "", text
    steps = checkpoints.run_steps(uri)
    if steps is None:
        last = hub.last_part(uri) or uri.rstrip("/").rsplit("/", 1)[-1]
        return [(name or last or uri, uri)]
    return [(f"{name}@{s.number}" if name else s.name, s.uri) for s in steps]


def _telling_names(uris: Sequence[str]) -> list[str]:
    """Return names for places: the folders of one level, where those tell all apart."""
    folders = [[part for part in uri.split("/") if part] for uri in uris]
    for level in range(1, max(map(len, folders)) + 1):
        names = [f[-level] if len(f) >= level else "" for f in folders]
        if len(set(names)) == len(names) and all(map(_NAME.fullmatch, names)):
            return names
    return [f"expert{i}" for i in range(len(uris))]


def _require_same_leaves(inputs: Inputs) -> None:
    trees = zip(inputs.names, (s.abstract for s in inputs.sources), strict=True)
    lines = tree.differences(dict(trees))
    if not lines:
        return
    advice = ["Merge models of one architecture."]
    heads = [_HEAD in leaves for leaves in inputs.abstracts]
    if any(heads) and not all(heads):
        advice.append(
            f"Where there is no {_HEAD}, the output weights are tied to the embedding:"
            " save that model with them untied, or the others with them tied."
        )
    if any("embed" in line and ": shape" in line for line in lines):
        advice.append(
            "Vocabularies of two sizes are merged by a mergekit YAML with "
            "tokenizer_source."
        )
    raise UserError(
        "the models do not have the same leaves:\n  "
        + "\n  ".join(lines)
        + "\n"
        + " ".join(advice)
    )
