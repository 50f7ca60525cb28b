"""`merging fit`: a law of merging, fitted to rows."""

import argparse

from merging.cli.command import Command, config_and_workdir, takes_config_and_workdir


def _run(arguments: argparse.Namespace) -> int:
    from merging.analysis import fitting

    config, workdir = config_and_workdir(arguments)
    fitting.run(config, workdir)
    return 0


COMMAND = Command(
    "fit a law of merging to rows, with intervals and held-out tests",
    """\
    Fit E[L | N, k] = L* + B·N^−β + A₀·N^−γ / (k + b), or a saturating gain, to the rows
    of one or many runs or to a CSV, by weighted least squares; intervals by a bootstrap
    over seeds and subsets; and test it: fitted on small k or small N, it predicts the
    rest. WORKDIR/analysis.json has a row for each number.

    examples:
      merging fit --config fit/law --config.rows=RUN1,RUN2 --workdir law
      merging fit --config fit/law --config.rows=losses.csv --config.fit_k=8 \\
          --workdir law
      merging fit --config fit/saturating --config.rows=RUN --workdir saturating
    """,
    takes_config_and_workdir,
    _run,
    configs=("fit",),
    example="fit/law",
)
