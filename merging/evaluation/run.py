"""What `merging evaluate` does with a config: scores, then rows, tables and exports."""

from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

from merging import tasks
from merging.evaluation import bootstrap, export, job, samples, store, tables
from merging.evaluation.rows import ModelLabels, reference, require_comparable, rows
from merging.evaluation.scores import DatasetScore, Record
from merging.runtime import config_keys, processes, results, storage, text
from merging.runtime.config import config_hash
from merging.runtime.errors import UserError, nearest
from merging.runtime.results import BASELINES, BASES
from merging.runtime.storage import Folder

_KEYS = {
    "checkpoint": str,
    "suite": ConfigDict,
    "tokenizer": "",
    "datasets": (),
    "split": "test",
    "count": 0,
    "metrics": (),
    "batch_size": 32,
    "context": 0,
    "dtype": "",
    "mesh": ConfigDict(dict(data=-1, fsdp=1, tensor=1)),
    "bootstrap": bootstrap.DEFAULT._asdict(),
    "labels": dict(
        family="", size="", base="pt", method="base", K=0, subset=(), seed=0
    ),
    "base_results": "",
    "expert_results": "",
    "samples": True,
}


def run(config: Any, workdir: Folder) -> None:
    """Evaluate what a config names, and print a table; see `configs/evaluate/`.

    Raises:
      UserError: a config, checkpoint, tokenizer or dataset that can't be used, or a
        model that does not know the tokenizer's tokens.
      Preempted: the system asked to stop; finished datasets are kept.
    """
    config = config_keys.completed(
        config,
        _KEYS,
        "merging evaluate",
        "evaluate/miniworld",
        remote=("checkpoint",),
        kept=("base_results", "expert_results"),
    )
    workdir = storage.place(workdir, "--workdir")
    processes.initialize(workdir / "logs")
    _check(config)
    settings = config.suite.to_dict()
    name = settings.pop("name", "")
    if "only" in settings:  # what is not asked for need not be there
        settings["only"] = settings["only"] or tuple(config.datasets)
    base = reference(config.base_results, name)
    expert = reference(config.expert_results, name)
    model = job.open_model(config.checkpoint, config.tokenizer)
    chosen = ("split", "datasets", "count", "metrics", "context", "batch_size", "dtype")
    suite = tasks.suite(name, **settings | {"tokenizer": model.tokenizer})
    job.evaluate(
        model,
        suite,
        **{key: config[key] for key in chosen},
        mesh=job.mesh_of(config.mesh),
        workdir=workdir,
    )
    if processes.is_first():
        records = store.present(workdir)
        require_comparable([record.score for record in records], base, expert)
        for key, of in (("base_results", base), ("expert_results", expert)):
            if of.rows and not of.scores:
                print(
                    f"{key}: rows alone do not say whether they are of these examples"
                )
        made = rows(
            records,
            _labels(config, name, model),
            base={dataset: row.value for dataset, row in base.rows.items()},
            expert={dataset: row.value for dataset, row in expert.rows.items()},
            config_hash=config_hash(config),
        )
        path = results.write(workdir / results.FILE, made)
        print(_published(config, workdir, suite, model, records))
        print(f"Rows: {path}")
    processes.barrier("the results are written")


def _published(
    config: Any,
    workdir: Folder,
    suite: tasks.Suite,
    model: job.Model,
    records: list[Record],
) -> str:
    """Write the file for the harness's readers, and return what a person reads."""
    how = bootstrap.Options(**config.bootstrap)
    scores = [record.score for record in records]
    values = [
        {metric: tables.value(score, metric, how) for metric in score.metrics}
        for score in scores
    ]
    exported = export.write(
        workdir,
        records,
        values,
        model=model.uri,
        suite=suite.name,
        split=config.split,
        context=config.context or model.config.max_length,
        chat_template=suite.tokenizer.template if suite.chat else "",
        config={
            "model_args": {"pretrained": model.uri, "dtype": config.dtype or None},
            "model_num_parameters": model.parameters,
            "batch_size": str(config.batch_size),
            "limit": config.count or None,
            "bootstrap_iters": how.resamples,
        },
        examples=_examples(config, suite, scores) if config.samples else None,
    )
    lines = [tables.table(scores, values, how.level).text(), *tables.notes(scores)]
    return "\n".join([*lines, f"For lm-evaluation-harness's readers: {exported}"])


def _examples(
    config: Any, suite: tasks.Suite, scores: list[DatasetScore]
) -> Callable[[str], Iterator[samples.Sample]]:
    """Return the samples of a dataset by its name, its examples read once more."""
    found = {score.dataset: score for score in scores}
    kept = tasks.kept_for_user()  # where `job.evaluate` has left them

    def of(dataset: str) -> Iterator[samples.Sample]:
        sets = tasks.load_suite(
            suite,
            config.split,
            config.count or None,
            datasets=[dataset],
            cache_dir=kept,
            fewer=True,
        )
        return samples.samples(found[dataset], sets, suite.tokenizer.spelled)

    return of


def _labels(config: Any, suite: str, model: job.Model) -> ModelLabels:
    labels = config.labels.to_dict()
    labels["subset"] = tuple(labels["subset"])
    labels["family"] = labels["family"] or model.family
    labels["size"] = labels["size"] or text.parameters(model.parameters)
    return ModelLabels(suite=suite, params=model.parameters, parameters={}, **labels)


def _check(config: Any) -> None:
    """Refuse what can't be, before anything is read: all of it."""
    faults = []
    if not config.checkpoint:
        faults.append("no checkpoint to evaluate: --config.checkpoint=DIR")
    for key, least in (("count", 0), ("batch_size", 1), ("context", 0)):
        if config[key] < least:
            faults.append(f"{key} = {config[key]} must be {least} or more")
    if config.bootstrap.resamples < 2:
        faults.append("bootstrap.resamples must be 2 or more")
    if not 0 < config.bootstrap.level < 1:
        faults.append("bootstrap.level must lie between 0 and 1")
    labels = config.labels
    if labels.base not in BASES:
        faults.append(str(nearest("labels.base", labels.base, BASES)))
    if labels.method not in BASELINES and labels.K != len(labels.subset):
        faults.append(
            f"labels.K is {labels.K}, but labels.subset names {len(labels.subset)} "
            "categories: a merge of K experts names theirs"
        )
    if faults:
        raise UserError("\n".join(faults))
