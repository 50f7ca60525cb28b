"""The loss on the way from one model to another, and whether tasks disentangle.

`merging analyze --config analyze/connectivity`; quantities of its rows:

  loss, error     of = (from, to, dataset): at the share α of the way, of
                  (1 − α)·from + α·to; nats per token, and 1 − the metric's value. Of
                  (from, to) alone: the means over the datasets.
  loss_barrier,   of = (from, to): the largest L(mix) − [(1 − α) L(from) + α L(to)] over
  error_barrier   the points of the mean loss; 0 at least, as the ends have 0 (Frankle
                  et al. 2020, arXiv 1912.05671). None without a point in between.
  disentanglement_error
                  of = (expert,): at = α, the share of its category's examples on which
                  θ₀ + α·Δ_t and θ₀ + α·ΣΔₛ answer differently, a mean over its
                  datasets; of = (): the sum ξ(α)
                  over the experts (Ortiz-Jimenez et al. 2023, arXiv 2305.12827, section
                  4, with the prediction error as the distance).
  wise_ft_share,  of = (model,): the α at which (1 − α)·base + α·model has the highest
  wise_ft_value,  mean value on validation, its mean value on the config's split, and
  plain_value     that of the model itself there (Wortsman et al. 2022, WiSE-FT, arXiv
                  2109.01903).

All but wise_ft_share is of the config's split.

Cost: an evaluation for each model, for each point between the ends of each path, and
K + 1 for each α of ξ. The models are in memory, on one device; one process.
"""

import functools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from merging import models
from merging.analysis import describing, figures, judged, place, rows
from merging.analysis.figures import Panel
from merging.analysis.judged import Judge, Score
from merging.analysis.kept import Kept
from merging.analysis.rows import Row
from merging.report.plotting import Figure
from merging.runtime import config_keys, preemption, processes
from merging.runtime.errors import UserError
from merging.runtime.progress import Progress

KEYS = {
    "analysis": "connectivity",
    "base": str,
    "experts": (),
    "merged": (),
    "suite": ConfigDict,
    "points": 11,
    "scales": (0.3, 1.0),
    "wise_ft": True,
    **judged.SUITE,
}
BASE = "base"
_MOST_DRAWN = 12  # paths in one figure; the rows have all
Point = dict[str, Score]


def run(config: Any, workdir: Path, data: Path | None = None) -> bool:
    """Do what a config says (see configs/analyze/connectivity.py), into a workdir.

    Args:
      config: the analysis'.
      workdir: where to write, and to continue.
      data: where the suite's rows are kept; in the workdir by default.

    Returns:
      Whether there was something to do.

    Raises:
      UserError: models, a suite or datasets that can't be used.
      Preempted: the system asked to stop; finished points are kept.
    """
    config = config_keys.completed(
        config,
        KEYS,
        "merging analyze",
        "analyze/connectivity",
        remote=("base", "experts", "merged"),
    )
    processes.initialize(workdir / "logs")
    if processes.count() > 1:
        raise UserError("the analysis connectivity runs in one process.")
    values = config.to_dict()
    if values["points"] < 2:
        raise UserError("points must be 2 or more: the ends of a path are two.")
    judged.check(values)
    with place.held(workdir, values):
        sources, experts, merged = describing.open_each(values)
        of = describing.identity(sources, values)
        if describing.is_done(workdir, "connectivity", of):
            return False
        uris = {name: sources[name].uri for name in (*experts, *merged)}
        del sources  # the files; from here on models are in memory
        scales = values["scales"] if experts else ()
        loaded = judged.load(values["base"], uris, values["dtype"])
        suite = judged.suite_of(values["suite"], loaded.tokenizer)
        own = judged.own_datasets(suite, experts) if scales else {}
        chosen = values["datasets"] or [
            of.name for of in suite.datasets if of.split == "held_in"
        ]

        def judge(split: str, datasets: Sequence[str]) -> Judge:
            how = values["count"], values["batch_size"], data or workdir / "data"
            return Judge(loaded.decoder, suite, datasets, split, *how)

        on_split = functools.partial(judge, values["split"])
        chosen_judge = on_split(chosen)
        place.claim(workdir, values)
        kept = Kept(workdir, of)
        paths = _paths(experts, merged)
        everyone = {BASE: loaded.base, **loaded.others}
        made, whole = [], dict[str, Point]()
        for label in paths:
            points = _along(
                *(kept, label, everyone, values["points"], chosen_judge, whole)
            )
            made += path_rows(*label, points)
        if values["wise_ft"] and merged:
            validation, whole = judge("validation", chosen), dict[str, Point]()
            for name in merged:
                label = (BASE, name, "validation")
                points = _along(
                    *(kept, label, everyone, values["points"], validation, whole)
                )
                made += _wise_ft(name, points, made)
        ours = {name: loaded.others[name] for name in experts}
        for scale in scales:
            found = _disentangled(kept, loaded.base, ours, scale, own, on_split)
            made += [
                Row("disentanglement_error", error, of=(name,), at=scale)
                for name, error in found.items()
            ]
            total = sum(found.values())
            made.append(Row("disentanglement_error", total, at=scale))
        rows.write(
            workdir,
            "connectivity",
            made,
            settings=of["settings"],
            inputs=of["inputs"],
            experts=experts,
            merged=merged,
        )
        figures.write(workdir, [_figure(paths, made)])
        kept.forget()
    return True


def _paths(experts: Sequence[str], merged: Sequence[str]) -> list[tuple[str, str]]:
    """Return base → merge, expert → expert (each pair once), expert → merge."""
    pairs = [(a, b) for i, a in enumerate(experts) for b in experts[i + 1 :]]
    to_merged = [(a, m) for m in merged for a in experts]
    return [*((BASE, m) for m in merged), *pairs, *to_merged]


def _along(
    kept: Kept,
    label: tuple[str, ...],
    everyone: Mapping[str, models.Params],
    count: int,
    judge: Judge,
    whole: dict[str, Point],
) -> dict[float, Point]:
    """Return {α: scores} at so many points of a path; those kept are not redone.

    Args:
      kept: what is finished.
      label: the models at the ends, and what tells this path from others of theirs.
      everyone: the models by name.
      count: of the points, the ends among them.
      judge: of the points.
      whole: what it scored models at the ends of other paths; these ends are added.
    """
    known = {
        record["at"]: {name: Score(*s) for name, s in record["scores"].items()}
        for record in kept.records("points")
        if tuple(record["label"]) == label
    }
    ends, found = {0.0: label[0], 1.0: label[1]}, {}
    shown = " → ".join(label)
    with Progress(count, shown, check=preemption.raise_if_asked) as progress:
        for i in range(count):
            share = i / (count - 1)
            name = ends.get(share)
            if share not in known:
                if name not in whole:
                    mix = judged.mixed(*(everyone[n] for n in ends.values()), share)
                    known[share] = judge.scores(mix)
                else:
                    known[share] = whole[name]
                record = {"label": label, "at": share, "scores": known[share]}
                kept.keep_record("points", record)
            if name is not None:
                whole[name] = known[share]
            found[share] = known[share]
            progress.advance(1)
    return found


def path_rows(start: str, end: str, points: Mapping[float, Point]) -> Iterator[Row]:
    """Yield the rows of a path, from its points by share, 0 and 1 among them."""
    names = list(points[0.0])
    # A mean over other datasets would be another loss.
    scored = [n for n in names if all(p[n].loss is not None for p in points.values())]
    for quantity, of in (("loss", scored), ("error", names)):
        if not of:
            continue
        unit = "nats per token" if quantity == "loss" else ""
        means = {}
        for share, point in points.items():
            each = {name: _badness(point[name], quantity) for name in of}
            for name, value in each.items():
                yield Row(quantity, value, of=(start, end, name), at=share, unit=unit)
            means[share] = statistics.fmean(each.values())
            yield Row(quantity, means[share], of=(start, end), at=share, unit=unit)
        if len(means) > 2:  # nothing was looked at between the ends
            height = barrier(means)
            yield Row(f"{quantity}_barrier", height, of=(start, end), unit=unit)


def _badness(score: Score, quantity: str) -> float:
    return score.loss if quantity == "loss" else 1 - score.value


def barrier(losses: Mapping[float, float]) -> float:
    """Return max over α of L(α) − [(1 − α) L(0) + α L(1)], of losses by share α."""
    start, end = losses[0.0], losses[1.0]
    return max(
        value - ((1 - share) * start + share * end) for share, value in losses.items()
    )


def _wise_ft(
    name: str, validation: Mapping[float, Point], made: Sequence[Row]
) -> list[Row]:
    """Choose α on validation, the smallest of equals; return its rows.

    Args:
      name: the model's.
      validation: scores by share of the way from the base to it.
      made: the rows of that way on the config's split.
    """
    means = {
        share: statistics.fmean(score.value for score in point.values())
        for share, point in validation.items()
    }
    best = max(means, key=lambda share: (means[share], -share))
    on_split = {
        row.at: 1 - row.value
        for row in made
        if row.quantity == "error" and row.of == (BASE, name)
    }
    return [
        Row("wise_ft_share", best, of=(name,)),
        Row("wise_ft_value", on_split[best], of=(name,)),
        Row("plain_value", on_split[1.0], of=(name,)),
    ]


def _disentangled(
    kept: Kept,
    base: models.Params,
    experts: Mapping[str, models.Params],
    scale: float,
    own: Mapping[str, Sequence[str]],
    judge: Callable[[Sequence[str]], Judge],
) -> dict[str, float]:
    """Return {expert: share of its examples that all together answer otherwise}."""
    for record in kept.records("disentangled"):
        if record["at"] == scale:
            return record["errors"]
    everyone = judged.added(base, experts, scale)
    errors = {}
    for name, datasets in own.items():
        asked = judge(datasets)
        alone = asked.answers(judged.added(base, {name: experts[name]}, scale))
        errors[name] = disagreement(alone, asked.answers(everyone))
        preemption.raise_if_asked()
    kept.keep_record("disentangled", {"at": scale, "errors": errors})
    return errors


def disagreement(one: Mapping[str, Sequence], other: Mapping[str, Sequence]) -> float:
    """Return the share of examples answered differently, a mean over the datasets."""
    return statistics.fmean(
        statistics.fmean(a != b for a, b in zip(one[name], other[name], strict=True))
        for name in one
    )


def _figure(paths: Sequence[tuple[str, str]], made: Sequence[Row]) -> Figure:
    known = {row.quantity for row in made}
    quantity = "loss" if "loss" in known else "error"
    label = "loss (nats per token)" if quantity == "loss" else "error"
    curves = {
        f"{start} → {end}": figures.of_rows(made, quantity, of=(start, end))
        for start, end in paths[:_MOST_DRAWN]
    }
    caption = "The mean loss over the datasets, on the way from one model to another."
    if len(paths) > _MOST_DRAWN:
        caption += f" The first {_MOST_DRAWN} of {len(paths)} paths."
    panel = Panel("share of the way", label, curves)
    return figures.curves("paths", "On the way", caption, [panel])


def summary(made: Sequence[Row]) -> str:
    """Return all but the points of the paths, as a table."""
    shown = [row for row in made if "loss" != row.quantity != "error"]
    return describing.as_table(shown)
