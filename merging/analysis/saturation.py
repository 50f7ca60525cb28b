"""Why more experts stop helping: widths, dimensions, and the K that is one too many.

`merging analyze --config analyze/saturation`; quantities of its rows:

  effective_rank   at = k: of the first k experts' stack (`gram.effective_rank`)
  width, marginal_width, ellipsoid_width
                   at = k: of the first k task vectors, each scaled to length 1, in the
                   order given (`widths`), with Monte Carlo intervals
  mean_width, mean_marginal_width, mean_ellipsoid_width
                   the same, means over random orders of the experts
  critical_density of = (expert,): the smallest density, of those tried, from which on
                   upwards the exact global trim of Δᵢ keeps `share` of the expert's own
                   score (the mean ratio over its datasets); `low` is the next smaller
                   one, at which it does not, 0 where all do; 1 where even the largest
                   tried does not. Null for an expert whose mean value is not above the
                   base's: it learned nothing that a trim could lose
  statistical_dimension
                   of = (expert,): ⌊density · n⌋ coordinates, δᵢ of `kinematics`; of
                   the experts that have a critical density, as what follows
  l1_dimension     of = (expert,): n · ψ(density), if only how many coordinates matter
                   is known, not which (`kinematics.l1_descent_cone`)
  space            of = (name,): D: "parameters", n coordinates; "coordinates", the
                   participation count of the stack (`geometry_rows`), which is no
                   dimension in the unit of δᵢ: what is held against it is a remark
  threshold        of = (name of the space,): K* (`kinematics.threshold`) with the upper
                   ends of all brackets of critical densities, which is also its `low`;
                   `high` is K* with their lower ends, null where all of these are 0.
                   `at` is the number of experts that have a density: a K* above it is
                   extrapolated with their mean δ

Cost: a pass over the checkpoints; draws × K² for the widths; an evaluation of an
expert's own datasets for the base, for the expert, and for each density tried.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from merging.analysis import (
    describing,
    figures,
    gram,
    judged,
    kinematics,
    place,
    rows,
    task_vectors,
    units,
)
from merging.analysis.figures import Panel
from merging.analysis.judged import Judge, Models, Score
from merging.analysis.kept import Kept
from merging.analysis.rows import Row
from merging.analysis.task_vectors import Geometry
from merging.analysis.widths import widths
from merging.methods.reductions import kept_count
from merging.report.plotting import Figure
from merging.runtime import config_keys, memory, preemption, processes, storage
from merging.runtime.errors import UserError
from merging.runtime.progress import Progress

KEYS = {
    "analysis": "saturation",
    "base": str,
    "experts": tuple,
    "suite": ConfigDict(),
    "densities": (0.9, 0.8, 0.7, 0.6, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005),
    "share": 0.99,
    "draws": 2**17,
    "orders": 64,
    "seed": 0,
    "memory_budget": "1GB",
    "split": "test",
    "count": 0,
    "batch_size": 0,
    "dtype": "",
}


def run(config: Any, workdir: Path, data: Path | None = None) -> bool:
    """Do what a config says (see configs/analyze/saturation.py), into a workdir.

    Args:
      config: the analysis'.
      workdir: where to write, and to continue.
      data: where the suite's rows are kept; in the workdir by default.

    Returns:
      Whether there was something to do.

    Raises:
      UserError: models, a suite or densities that can't be used.
      Preempted: the system asked to stop; what is finished is kept.
    """
    config = config_keys.completed(
        config,
        KEYS,
        "merging analyze",
        "analyze/saturation",
        remote=("base", "experts"),
    )
    memory.settle_process()
    processes.initialize(workdir / "logs")
    if processes.count() > 1:
        raise UserError("the analysis saturation runs in one process.")
    values = config.to_dict()
    _check(values)
    budget = storage.parse_size(values.pop("memory_budget"))
    with place.held(workdir, values):
        inputs, experts, _ = describing.open_models(values | {"merged": ()})
        of = describing.identity(inputs.everything, values)
        if describing.is_done(workdir, "saturation", of):
            return False
        partition, _ = units.cut(inputs.abstracts, lambda path: True, budget)
        models, judges = None, {}
        if values["suite"].get("name"):
            uris = {name: inputs.experts[name].uri for name in experts}
            models = judged.load(values["base"], uris, values["dtype"])
            judges = _judges(values, models, data or workdir / "data")
        place.claim(workdir, values)
        blocks = describing.block_digest(partition)
        kept = Kept(workdir, of | {"blocks": blocks})
        found = task_vectors.measure(inputs, experts, budget=budget, kept=kept)
        made = list(width_rows(found, values))
        if models is not None:
            critical = _critical(values, models, judges, kept)
            made += dimension_rows(found, critical)
        rows.write(
            workdir,
            "saturation",
            made,
            settings=of["settings"],
            inputs=of["inputs"],
            experts=experts,
        )
        figures.write(workdir, [_figure(made)])
        kept.forget()
    return True


summary = describing.as_table


def _check(values: Mapping[str, Any]) -> None:
    faults = []
    densities = values["densities"]
    if not densities or any(not 0 < d < 1 for d in densities):
        faults.append(f"densities must lie between 0 and 1, not {densities}")
    if not 0 < values["share"] <= 1:
        faults.append(f"share must lie in 0..1, not {values['share']}")
    for key, least in (("draws", 2), ("orders", 2), ("count", 0), ("batch_size", 0)):
        if values[key] < least:
            faults.append(f"{key} must be {least} or more")
    if faults:
        raise UserError("\n".join(faults))


def width_rows(found: Geometry, values: Mapping[str, Any]) -> Iterator[Row]:
    """Yield the rows of widths and ranks for growing K."""
    matrix, of = found.model.gram, found.experts
    for k in range(1, len(of) + 1):
        rank = gram.effective_rank(gram.eigenvalues(matrix[:k, :k]))
        yield Row("effective_rank", rank, of=of, at=k, unit="directions")
    cosines = gram.cosines(matrix)
    how = {"draws": values["draws"], "seed": values["seed"]}
    for before, orders in (("", 1), ("mean_", values["orders"])):
        made = widths(cosines, orders=orders, **how)
        for name, each in zip(
            ("width", "marginal_width", "ellipsoid_width"), made, strict=True
        ):
            for k, one in enumerate(each, 1):
                ends = {"low": one.low, "high": one.high}
                yield Row(f"{before}{name}", one.value, of=of, at=k, **ends)


def dimension_rows(
    found: Geometry, critical: Mapping[str, tuple[float, float] | None]
) -> Iterator[Row]:
    """Yield the rows of statistical dimensions, and of thresholds.

    Args:
      found: the geometry of the experts.
      critical: {expert: (its critical density, the next smaller that was tried), or
        None if it learned nothing}.
    """
    n, unit = found.model.elements, "coordinates"
    tops: list[int] = []
    bottoms: list[int] = []
    for name in found.experts:
        bracket = critical[name]
        if bracket is None:
            yield Row("critical_density", None, of=(name,))
            continue
        density, below = bracket
        yield Row("critical_density", density, of=(name,), low=below, high=density)
        tops.append(kept_count(density, n))
        bottoms.append(kept_count(below, n))
        yield Row("statistical_dimension", tops[-1], of=(name,), unit=unit)
        cone = n * kinematics.l1_descent_cone(density)
        yield Row("l1_dimension", cone, of=(name,), unit=unit)
    energy = np.trace(found.model.gram) ** 2
    spaces = {
        "parameters": float(n),
        "coordinates": energy / found.model.energy_squared,
    }
    for name, space in spaces.items():
        yield Row("space", space, of=(name,), unit=unit)
        if star := kinematics.threshold(tops, space):
            most = kinematics.threshold(bottoms, space)
            ends = {"low": star, "high": most, "unit": "experts"}
            yield Row("threshold", star, of=(name,), at=len(tops), **ends)


def _judges(values: Mapping[str, Any], models: Models, cache: Path) -> dict[str, Judge]:
    """Return what judges each expert: on its own datasets."""
    suite = judged.suite_of(values["suite"], models.tokenizer)
    how = values["split"], values["count"], values["batch_size"], cache
    return {
        name: Judge(models.decoder, suite, datasets, *how)
        for name, datasets in judged.own_datasets(suite, list(models.others)).items()
    }


def _critical(
    values: Mapping[str, Any], models: Models, judges: Mapping[str, Judge], kept: Kept
) -> dict[str, tuple[float, float] | None]:
    """Return {expert: (its critical density, the next smaller that was tried)}.

    None for an expert that learned nothing, of which a warning is printed.
    """
    known = {
        (record["expert"], record["density"]): record["kept"]
        for record in kept.records("densities")
    }
    found = {}
    with Progress(len(judges), "densities", check=preemption.raise_if_asked) as shown:
        for name, judge in judges.items():
            own = judge.scores(models.others[name])
            if not learned(own, judge.scores(models.base)):
                shown.message(
                    f"warning: {name} is not above the base on its own datasets: no "
                    "critical density, and K* is of the other experts"
                )
                found[name] = None
                shown.advance(1, name)
                continue

            def share(density: float, name=name, judge=judge, own=own) -> float:
                if (name, density) not in known:
                    params = judged.trimmed(models.base, models.others[name], density)
                    known[name, density] = kept_share(judge.scores(params), own)
                    record = {"expert": name, "density": density}
                    record["kept"] = known[name, density]
                    kept.keep_record("densities", record)
                    preemption.raise_if_asked()
                return known[name, density]

            found[name] = critical_density(share, values["densities"], values["share"])
            shown.advance(1, name)
    return found


def critical_density(
    kept: Any, densities: Sequence[float], share: float
) -> tuple[float, float]:
    """Return the smallest density that keeps a share, and the next smaller one tried.

    From the largest down, until one does not: a smaller one that happens to do again
    does not count, and is not tried. The next smaller is 0 if all of them do.

    Args:
      kept: ``density -> share of the score``.
      densities: to try. share: that must be kept.
    """
    critical = 1.0
    for density in sorted(densities, reverse=True):
        if kept(density) < share:
            return critical, density
        critical = density
    return critical, 0.0


def kept_share(scores: Mapping[str, Score], own: Mapping[str, Score]) -> float:
    """Return the mean ratio of values to an expert's own, over its datasets.

    A dataset that the expert has 0 of says nothing, and is left out.
    """
    ratios = [
        scores[name].value / score.value for name, score in own.items() if score.value
    ]
    return statistics.fmean(ratios) if ratios else 1.0


def learned(own: Mapping[str, Score], base: Mapping[str, Score]) -> bool:
    """Return whether an expert's mean value over its datasets exceeds the base's."""
    means = [statistics.fmean(s.value for s in of.values()) for of in (own, base)]
    return means[0] > means[1]


def _figure(made: Sequence[Row]) -> Figure:
    panels = [
        Panel(
            "K",
            "Gaussian width",
            {
                "hull": figures.of_rows(made, "mean_width"),
                "ellipsoid": figures.of_rows(made, "mean_ellipsoid_width"),
            },
        ),
        Panel(
            "K",
            "added by the K-th expert",
            {"marginal": figures.of_rows(made, "mean_marginal_width")},
        ),
        Panel(
            "K",
            "directions",
            {"effective rank": figures.of_rows(made, "effective_rank")},
        ),
    ]
    caption = "Widths are means over random orders; ranks are of the order given."
    return figures.curves("widths", "What K experts span", caption, panels)
