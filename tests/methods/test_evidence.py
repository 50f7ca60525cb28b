"""What the registry says of methods is what docs/results/methods measured."""

import csv
from pathlib import Path

import pytest

from merging import methods

RESULTS = Path(__file__).parents[2] / "docs/results/methods"
TABLES = [RESULTS / "statistics/tables/F12.csv", RESULTS / "tables/F12.csv"]
KNOWN = {entry.name: entry.evidence for entry in methods.catalogue()}


def last_rows():
    """Return {method: its row of most experts}; of two sweeps, the larger counts."""
    found = {}
    for table in TABLES:
        with table.open() as file:
            rows = [row for row in csv.DictReader(file) if row["K"] != "all"]
        rows.sort(key=lambda row: int(row["K"]))
        found |= {row["method"]: row for row in rows}
    return found


@pytest.mark.parametrize("row", last_rows().values(), ids=last_rows())
def test_a_measured_method_says_how_it_did_beside_task_arithmetic(row):
    known = " ".join(KNOWN[row["method"]].split("at 24x")[1:])
    own = float(row["mean"])
    other = own - float(row["difference"])
    assert row["reading"] in known
    assert f"K = {row['K']}" in known
    assert f"{own:.2f} against {other:.2f}" in known


def test_one_that_is_no_measured_method_says_nothing_of_it():
    measured = set(last_rows())
    assert len(measured) == 25
    assert not [n for n, known in KNOWN.items() if "24x" in known and n not in measured]
