"""Merges of what Orbax's own checkpointers wrote, opened by them again."""

import jax
import numpy as np
import orbax.checkpoint as v0
import pytest
import stock_orbax as stock
from orbax.checkpoint import v1 as ocp

from merging import UserError
from merging.merge import streamed as stream

pytestmark = pytest.mark.filterwarnings("ignore:.*params are taken", "ignore:.*steps")


def by_standard(path, like):
    with v0.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path, like)


@pytest.mark.parametrize(
    ("save", "read"),
    [
        (stock.standard, by_standard),
        (stock.pytree, lambda path, like: v0.PyTreeCheckpointer().restore(path, like)),
        (stock.one_run, by_standard),
        (stock.by_v1, ocp.load),
    ],
)
def test_a_merge_of_training_states_is_their_weights(tmp_path, save, read):
    experts = [str(save(tmp_path / f"e{i}", stock.state(i))) for i in (1, 2)]
    base = str(stock.standard(tmp_path / "base", stock.params()))
    output = str(tmp_path / "merged")
    method = "task_arithmetic(scale=0.5)"
    merged = stream.merge_checkpoints(base, experts, method, output)
    like = jax.tree.map(np.asarray, stock.params())
    found = read(merged, like)
    expected = jax.tree.map(
        lambda zero, one, two: np.asarray(zero) + ((one - zero) + (two - zero)) / 2,
        *(stock.params(i) for i in range(3)),
    )
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), found, expected
    )
    assert stream.verify(output) == []


def test_an_orbax_merge_has_a_model_card_that_names_the_step(tmp_path):
    run = stock.run(tmp_path / "run", {n: stock.params(n) for n in (100, 200)})
    output = tmp_path / "merged"
    stream.merge_checkpoints(None, [str(run)], "average()", str(output))
    card = (output / "README.md").read_text()
    assert "# Merged model" in card and f"| `{run}/200` |" in card
    assert "transformers" not in card


def test_a_merge_is_repeated_from_the_step_that_it_took_or_not_at_all(tmp_path):
    run = stock.run(tmp_path / "run", {n: stock.params(n) for n in (100, 200)})
    output = tmp_path / "merged"
    stream.merge_checkpoints(None, [str(run)], "average()", str(output))
    again = stream.repeat(output / "manifest.json", str(tmp_path / "again"))
    assert stream.verify(str(again)) == []
    stock.run(run, {300: stock.params(300)})
    with pytest.raises(UserError, match="not what they were: run"):
        stream.repeat(output / "manifest.json", str(tmp_path / "third"))


def test_a_tree_is_not_written_under_names_no_one_reads(tmp_path):
    expert = stock.standard(tmp_path / "expert", stock.params())
    output = tmp_path / "merged"
    with pytest.raises(UserError, match=r"have no names in a safetensors.* convert"):
        stream.merge_checkpoints(
            None, [str(expert)], "average()", str(output), format="safetensors"
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["expert"]


def test_a_leaf_called_as_a_file_is_refused_before_it_is_merged(tmp_path):
    one = np.ones(3, np.float32)
    for name in ("README.md", "manifest.json", "LICENSE"):
        run = stock.standard(tmp_path / f"of {name}", {name: one, "w": one})
        (tmp_path / f"of {name}" / "LICENSE").write_text("free")
        with pytest.raises(UserError, match=f"{name} and a file beside the weights"):
            stream.merge_checkpoints(
                None, [str(run)], "average()", str(tmp_path / "out"), format="orbax"
            )
        assert not list(tmp_path.glob("out*"))


def test_a_failed_merge_does_not_touch_another_unfinished_one(tmp_path):
    """The folder of an unfinished safetensors merge was deleted by an Orbax one."""
    partial = tmp_path / "merged.partial"
    (partial / ".merge").mkdir(parents=True)
    (partial / "model.safetensors").write_bytes(b"hours of work")
    expert = stock.standard(tmp_path / "expert", stock.params())
    with pytest.raises(UserError, match="merged.partial exists, and is no output"):
        stream.merge_checkpoints(
            None, [str(expert)], "average()", str(tmp_path / "merged")
        )
    assert (partial / "model.safetensors").read_bytes() == b"hours of work"
