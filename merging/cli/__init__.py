"""The commands, in the order that `merging --help` lists them: one file each.

A command imports what it needs when it runs: help must not wait for JAX.
"""

from merging.cli import (
    adamerge,
    analyze,
    collect,
    completion,
    convert,
    evaluate,
    extract,
    fit,
    inspect,
    merge,
    methods,
    plan,
    report,
    search,
    status,
    sweep,
    tasks,
    train,
    verify,
)

COMMANDS = {
    "merge": merge.COMMAND,
    "verify": verify.COMMAND,
    "inspect": inspect.COMMAND,
    "plan": plan.COMMAND,
    "convert": convert.COMMAND,
    "extract": extract.COMMAND,
    "train": train.COMMAND,
    "collect": collect.COMMAND,
    "evaluate": evaluate.COMMAND,
    "sweep": sweep.COMMAND,
    "search": search.COMMAND,
    "adamerge": adamerge.COMMAND,
    "status": status.COMMAND,
    "analyze": analyze.COMMAND,
    "fit": fit.COMMAND,
    "report": report.COMMAND,
    "tasks": tasks.COMMAND,
    "methods": methods.COMMAND,
    "completion": completion.COMMAND,
}
