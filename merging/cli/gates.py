"""`merging gates`: can a suite tell good models from bad ones?"""

import argparse

from merging.cli.command import Command, config_and_workdir, takes_config_and_workdir


def _run(arguments: argparse.Namespace) -> int:
    config, workdir = config_and_workdir(arguments)
    from merging import sweep

    return 0 if sweep.gates(config, workdir) else 1


COMMAND = Command(
    "prove that a suite can tell good models from bad ones",
    """\
    Print, per dataset, the scores of chance, both bases, the expert and a model
    trained on it directly, and whether each gate passes. Status 1 if one fails.

    examples:
      merging gates --config configs/scaling_curves/tiny.py --workdir curves
    """,
    takes_config_and_workdir,
    _run,
    resumable=True,
)
