"""Blocks merged while their thresholds are counted: won, lost, and stopped halfway."""

import time
from types import SimpleNamespace

import models
import numpy as np
import pytest
from safetensors.numpy import load_file

from merging import UserError, methods
from merging.checkpoints.object_writer import ObjectWriter
from merging.merge import blocks, memory, search, speculation
from merging.merge import streamed as stream
from merging.merge.pipeline import Pipeline
from merging.merge.reduce import States
from merging.methods import combiners
from merging.runtime import storage
from merging.runtime.progress import Progress

TIES = methods.ties(density=0.3)


class Cut(Exception):
    """The power went."""


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """Task vectors of few magnitudes, as 16-bit checkpoints have them."""
    shapes = {f"model.layers.{i}.mlp.up_proj.weight": (257, 130) for i in range(6)}
    folder, start = tmp_path_factory.mktemp("family"), models.base(shapes=shapes)
    del start["positions"]  # all is merged
    experts = {f"e{i}": models.expert(start, i) for i in range(3)}
    saved = {name: models.save(folder / name, of) for name, of in experts.items()}
    return models.save(folder / "base", start), saved


@pytest.fixture(scope="module")
def expected(family):
    base, experts = family
    loaded = {n: load_file(f"{e}/model.safetensors") for n, e in experts.items()}
    start = load_file(f"{base}/model.safetensors")
    return models.bits(memory.merge(start, loaded, TIES))


@pytest.fixture
def listened(monkeypatch):
    """What a merge does: blocks read in passes, blocks read after them, and merged."""

    seen = SimpleNamespace(passes=[], after=[], merged=[])
    read, merge = Pipeline.each, blocks.BlockMerger.merge

    def each(self, numbers, wanted, work, told=False):
        (seen.after if told else seen.passes).extend(numbers)
        return read(self, numbers, wanted, work, told)

    def merging(self, put, *arguments):
        seen.merged.append(put.loaded.number)
        return merge(self, put, *arguments)

    monkeypatch.setattr(Pipeline, "each", each)
    monkeypatch.setattr(blocks.BlockMerger, "merge", merging)
    return seen


def merged(family, output, method=TIES, **settings):
    settings = {"memory_budget": "700kB"} | settings
    stream.merge_checkpoints(*family, method, str(output), **settings)
    assert stream.verify(str(output)) == []
    return models.bits(load_file(output / "model.safetensors"))


def wrong(monkeypatch, key):
    """Have the sample leave no doubt about another threshold."""
    guess = search._guess

    def guessed(*arguments):
        trials = guess(*arguments)
        return np.zeros_like(trials) + [key, key, key + 1]

    monkeypatch.setattr(search, "_guess", guessed)


def key(value):
    return int(np.float32(value).view(np.uint32))


def stopped(monkeypatch, family, output, name, calls):
    """Merge until a method of `BlockMerger` was called so often."""
    whole, seen = getattr(blocks.BlockMerger, name), []

    def cut(*arguments, **settings):
        seen.append(name)
        if len(seen) > calls:
            raise Cut
        return whole(*arguments, **settings)

    with monkeypatch.context() as patched, pytest.raises(Cut):
        patched.setattr(blocks.BlockMerger, name, cut)
        merged(family, output)
    return output.with_name(f"{output.name}.partial") / ".merge" / "blocks.0.jsonl"


def test_inputs_are_read_once(family, expected, tmp_path, listened):
    assert merged(family, tmp_path / "out") == expected
    assert len(set(listened.passes)) == len(listened.passes) > 4
    assert not listened.after
    assert sorted(listened.merged) == sorted(listened.passes)


@pytest.mark.parametrize("value", [2**-9, 2**-7])
def test_another_threshold_has_all_merged_again(
    family, expected, tmp_path, monkeypatch, capsys, listened, value
):
    wrong(monkeypatch, key(value))
    assert merged(family, tmp_path / "out") == expected
    first = sorted(set(listened.passes))
    assert sorted(listened.merged) == sorted(2 * first)
    assert first == sorted(listened.after)
    assert f"A threshold is another: {len(first)} blocks once more." in str(
        capsys.readouterr().err
    )


@pytest.mark.parametrize("guess", ["right", "wrong"])
def test_a_stopped_pass_goes_on_and_reads_no_finished_block_again(
    family, expected, tmp_path, monkeypatch, listened, guess
):
    if guess == "wrong":
        wrong(monkeypatch, key(2**-9))
    lines = stopped(monkeypatch, family, tmp_path / "out", "merge", 3)
    finished = len(lines.read_text().splitlines())
    assert 0 < finished <= 3
    listened.passes.clear()
    assert merged(family, tmp_path / "out") == expected
    first = set(listened.merged)
    if guess == "right":
        assert len(listened.passes) == len(first) - finished
        assert not listened.after


@pytest.mark.parametrize("known", [True, False])
def test_a_guess_that_was_lost_before_a_stop_is_lost_after_it(
    family, expected, tmp_path, monkeypatch, listened, known
):
    """All blocks are finished, and all are wrong; nobody had time to say so."""
    wrong(monkeypatch, key(2**-9))
    lines = stopped(monkeypatch, family, tmp_path / "out", "keep_only", 0)
    finished = len(lines.read_text().splitlines())
    if not known:
        (lines.parent / "answers.jsonl").unlink()
    listened.passes.clear(), listened.after.clear()
    assert merged(family, tmp_path / "out") == expected
    assert len(listened.after) == finished
    # The counts at the guess are in the journal; those around it are not.
    assert len(listened.passes) % finished == 0
    assert bool(listened.passes) == (not known)


def test_blocks_of_another_guess_are_merged_again(
    family, expected, tmp_path, monkeypatch, listened
):
    """As if another version had looked at another sample."""
    with monkeypatch.context() as patched:
        wrong(patched, key(2**-9))
        lines = stopped(patched, family, tmp_path / "out", "keep_only", 0)
    listened.passes.clear()
    assert merged(family, tmp_path / "out") == expected
    assert len(listened.passes) == len(set(listened.merged))
    assert lines.parent.parent.exists() is False


def test_of_many_magnitudes_nothing_is_guessed(tmp_path, monkeypatch, listened):
    """The sample of a large model says of float32 where a threshold is, no more."""
    monkeypatch.setattr("merging.merge.magnitudes.RUNS", 16)
    rng = np.random.default_rng(0)
    base = {"a": rng.normal(size=(300, 700)).astype("f4")}
    moved = [{"a": base["a"] + rng.normal(size=(300, 700)).astype("f4")} for _ in "ab"]
    folders = [models.save(tmp_path / f"e{i}", e) for i, e in enumerate(moved)]
    family = models.save(tmp_path / "base", base), folders
    found = merged(family, tmp_path / "out")
    experts = {f"e{i}": e for i, e in enumerate(moved)}
    assert found == models.bits(memory.merge(base, experts, TIES))
    assert sorted(listened.after) == sorted(set(listened.passes))


def test_an_expert_that_asks_nothing_leaves_all_to_the_others(family, tmp_path):
    """At a density of 1 every magnitude is kept, whatever it is."""
    method = methods.ties(density=(1.0, 0.3, 0.3))
    base, experts = family
    loaded = {n: load_file(f"{e}/model.safetensors") for n, e in experts.items()}
    start = load_file(f"{base}/model.safetensors")
    wanted = models.bits(memory.merge(start, loaded, method))
    assert merged(family, tmp_path / "out", method) == wanted


@pytest.mark.parametrize("guess", ["right", "wrong"])
def test_what_is_on_its_way_to_a_store_is_waited_for(
    family, expected, tmp_path, monkeypatch, listened, object_store, guess
):
    """Puts of the counting pass are slow: blocks it merged are merged or not, once."""
    if guess == "wrong":
        wrong(monkeypatch, key(2**-9))
    write, seen = ObjectWriter.write, set()

    def slowly(self, path, start, values):
        if (path, start) not in seen:
            seen.add((path, start))
            time.sleep(0.5)
        write(self, path, start, values)

    monkeypatch.setattr(ObjectWriter, "write", slowly)
    settings = {"memory_budget": "700kB"}
    stream.merge_checkpoints(*family, TIES, "gs://store/out", **settings)
    whole = storage.place("gs://store/out") / "model.safetensors"
    (tmp_path / "out").write_bytes(whole.read_bytes())
    assert models.bits(load_file(tmp_path / "out")) == expected
    times = 1 + (guess == "wrong")
    assert sorted(listened.merged) == sorted(times * list(set(listened.merged)))


def test_progress_knows_that_one_pass_is_enough(family, tmp_path, monkeypatch):
    told, advance = [], Progress.advance

    def listened(shown, *arguments):
        advance(shown, *arguments)
        told.append((shown.done, shown.total))

    monkeypatch.setattr(Progress, "advance", listened)
    merged(family, tmp_path / "out")
    assert {total for _, total in told} == {told[-1][0]} and len(told) > 4


def overflowing(folder):
    """Models whose merge is in float16's range if small steps are left out."""
    base = {"a": np.full((400, 1024), 65000, np.float32)}
    moved = [{"a": base["a"].copy()} for _ in "ab"]
    for one in moved:
        one["a"][::2] += 1000  # beyond 65,504, if it is kept
        one["a"][1::2] -= 2000
    folders = [models.save(folder / f"e{i}", e) for i, e in enumerate(moved)]
    return models.save(folder / "base", base), folders


def trimmed_mean(density):
    """Return a method without an election."""
    trim = methods.trim(density, "global")
    return methods.compose("trimmed", trim, combiner=combiners.mean(), scale=1.0)


@pytest.mark.parametrize("method", [methods.ties, trimmed_mean])
def test_a_guess_that_overflows_refuses_nothing(tmp_path, monkeypatch, method):
    family, settings = overflowing(tmp_path), {"dtype": "float16"}
    with pytest.raises(UserError, match="beyond the range of float16"):
        merged(family, tmp_path / "all", method(1.0), **settings)
    wrong(monkeypatch, key(1000))
    merged(family, tmp_path / "out", method(0.4), **settings)
    found = load_file(tmp_path / "out" / "model.safetensors")["a"]
    assert (found[::2] == 65000).all() and (found[1::2] == 63008).all()


def test_states_differ_by_what_is_in_them():
    one = States([[np.arange(3)]], None)
    assert speculation.digest(one) == speculation.digest(States([[np.arange(3)]], None))
    others = [[[np.arange(4)]], [[np.arange(3) > 1]], [[np.arange(3)[:, None]]]]
    found = {speculation.digest(States(of, None)) for of in others}
    assert len(found | {speculation.digest(one)}) == 4
