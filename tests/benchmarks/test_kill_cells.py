"""The kill campaign sees what was done twice."""

import shutil
from collections import Counter

import kill_cells
import pytest

SAID = ["2 of 9 blocks were finished before.\nMerged: out", "1 of 9 blocks were ..."]


def line(block):
    return f'{{"number": {block}, "checksum": 1}}\n'


@pytest.mark.parametrize("again", [False, True])
def test_a_block_done_again_is_seen_when_the_journal_is_gone(tmp_path, again):
    output, journal = tmp_path / "out", tmp_path / "out.partial" / ".merge"
    journal.mkdir(parents=True)
    merge = kill_cells.merge_cell(tmp_path, "ties", 2, "safetensors")
    (journal / "blocks.0.jsonl").write_text(line(0) + line(1) + '{"number": 2, "che')
    (journal / "blocks.1.jsonl").write_text(line(5))
    before = merge.told(output)
    assert sorted(before.values()) == [1, 1, 1]
    kill_cells.hold_journal(output)
    with open(journal / "blocks.1.jsonl", "a") as file:
        file.write(line(5 if again else 6))
    shutil.rmtree(journal.parent)
    assert merge.kept(before, merge.told(output), SAID) is not again


def test_a_merge_that_began_anew_is_seen(tmp_path):
    merge = kill_cells.merge_cell(tmp_path, "ties", 2, "safetensors")
    before = Counter([line(0)])
    assert not merge.kept(before, before, ["Merged: out"])
    assert merge.kept(before, before, ["killed before it said anything"])


@pytest.mark.parametrize(
    ("saved", "steps", "kept"),
    [
        (15, (0, 20, 25, 40), True),
        (15, (0, 15, 20, 40), False),
        (40, (0,), True),  # it was at its end
        (40, (5, 40), False),
    ],
)
def test_a_training_that_takes_a_saved_step_again_is_seen(saved, steps, kept):
    train = kill_cells.train_cell(2)
    before, now = (Counter([f"step_{step:08d}"]) for step in (saved, 40))
    said = [f"train pretrain {step / 40:4.0%}, 3s so far" for step in steps]
    assert train.kept(before, now, ["\n".join(said), ""]) is kept
