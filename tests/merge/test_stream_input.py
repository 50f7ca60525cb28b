"""Bad input of a streaming merge: one message that names it, before any work."""

from pathlib import Path

import jax.numpy as jnp
import models
import numpy as np
import pytest

from merging import UserError
from merging.merge import streamed as stream
from merging.merge.inputs import expert_names
from merging.runtime.progress import Progress


def attempt(base, experts, output, method="ties()", **settings):
    return stream.merge_checkpoints(
        str(base), [str(e) for e in experts], method, str(output), **settings
    )


@pytest.fixture
def own(tmp_path):
    return models.family(tmp_path / "own", 2)


def spoiled(folder, change):
    leaves = models.expert(models.base(), 7)
    change(leaves)
    return models.save(folder, leaves)


def test_models_that_differ_are_listed_leaf_by_leaf(own, tmp_path):
    def change(leaves):
        leaves["one"] = np.zeros(3, jnp.bfloat16)
        leaves["lm_head.weight"] = np.zeros((4, 4), jnp.bfloat16)
        leaves["scalar"] = np.zeros((), np.int32)
        del leaves["model.layers.1.input_layernorm.weight"]

    bad = spoiled(tmp_path / "bad", change)
    with pytest.raises(UserError) as caught:
        attempt(own[0], [bad], tmp_path / "out")
    for words in (
        "one: shape (3,) in 'bad'",
        "lm_head.weight: in 'bad', but not in 'the base'",
        "scalar: dtype class integer",
        "model.layers.1.input_layernorm.weight: missing from 'bad'",
    ):
        assert words in str(caught.value)
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("method", ["average()", "task_arithmetic()"])
def test_an_expert_that_is_called_as_the_base_is_refused(own, tmp_path, method):
    base = own[0] if method != "average()" else None
    called = Path(own[1]["e0"]).rename(tmp_path / "the base")
    experts = [str(called), own[1]["e1"]]
    with pytest.raises(UserError, match="called 'the base', as the base .*NAME=PATH"):
        stream.merge_checkpoints(base, experts, method, str(tmp_path / "out"))
    assert not (tmp_path / "out.partial").exists()


def test_tied_weights_and_other_vocabularies_are_said_to_be_that(own, tmp_path):
    def change(leaves):
        leaves["lm_head.weight"] = leaves["model.embed_tokens.weight"]
        leaves["model.embed_tokens.weight"] = np.zeros((601, 130), jnp.bfloat16)

    bad = spoiled(tmp_path / "bad", change)
    with pytest.raises(UserError) as caught:
        attempt(own[0], [bad], tmp_path / "out")
    for words in (
        "lm_head.weight: in 'bad', but not in 'the base'",
        "tied to the embedding: save",
        "model.embed_tokens.weight: shape (601, 130) in 'bad', (600, 130)",
        "merged by a mergekit YAML",
    ):
        assert words in str(caught.value)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.gguf"])
def test_pickles_and_quantised_models_are_not_opened(own, tmp_path, name):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / name).write_bytes(b"cos\nsystem\n(S'touch x'\ntR.")
    with pytest.raises(UserError, match=f"holds {name}.*save the model as safetensors"):
        attempt(own[0], [tmp_path / "other"], tmp_path / "out")


def test_a_model_that_is_cut_short_during_the_merge_is_named(own, tmp_path):
    """The second pass meets a file that lost its end after the first one."""
    torn = own[1]["e1"]
    weights = Path(torn) / "model.safetensors"
    whole = weights.read_bytes()

    class Tearing(Progress):
        def advance(self, amount, note=""):
            if note == "counting magnitudes":
                weights.write_bytes(whole[: len(whole) // 2])
            super().advance(amount, note)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("merging.merge.job.Progress", Tearing)
        with pytest.raises(
            UserError, match=r"e1.*model\.safetensors.*damaged"
        ) as caught:
            attempt(own[0], own[1].values(), tmp_path / "out", memory_budget="700kB")
    assert "model." in str(caught.value)
    weights.write_bytes(whole)
    attempt(own[0], own[1].values(), tmp_path / "out", memory_budget="700kB")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "method", ["average()", "ties(density=0.1)", "dare(density=0.01)", "rht()"]
)
def test_a_nan_or_inf_is_named(own, tmp_path, value, method):
    def change(leaves):
        leaves["model.layers.0.mlp.up_proj.weight"][7, 9] = value

    bad = spoiled(tmp_path / "bad", change)
    wanted = r"NaN or Inf .*\n  model\.layers\.0\.mlp\.up_proj\.weight in 'bad'$"
    with pytest.raises(UserError, match=wanted):
        attempt(own[0], [own[1]["e0"], bad], tmp_path / "out", method)


def test_integers_that_differ_are_named(own, tmp_path):
    def change(leaves):
        leaves["positions"] = leaves["positions"] + 1

    bad = spoiled(tmp_path / "bad", change)
    with pytest.raises(UserError, match="positions: 'bad' differs from 'the base'"):
        attempt(own[0], [bad], tmp_path / "out")


def test_a_result_beyond_its_dtype_is_named(tmp_path):
    base = models.save(tmp_path / "base", {"w": np.full(9, 6e4, np.float16)})
    expert = models.save(tmp_path / "e", {"w": np.full(9, 6.5e4, np.float16)})
    with pytest.raises(UserError, match="beyond the range of float16 in w"):
        attempt(base, [expert], tmp_path / "out", "task_arithmetic(scale=9.0)")


def test_an_output_that_exists_or_lies_in_an_input_is_refused(own, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="there exists"):
        attempt(own[0], own[1].values(), tmp_path / "there")
    with pytest.raises(UserError, match="lies in the input"):
        attempt(own[0], own[1].values(), f"{own[0]}/merged")


def test_what_is_unknown_is_answered_with_the_nearest(own, tmp_path):
    for settings, words in (
        ({"method": "tie()"}, "unknown method 'tie'.*ties"),
        ({"method": "ties(densty=0.2)"}, "densty.*density"),
        ({"dtype": "bf16"}, "unknown dtype 'bf16'.*bfloat16"),
        ({"format": "orbx"}, "unknown format 'orbx'.*orbax"),
        ({"memory_budget": "lots"}, "'lots' is no size"),
        ({"auxiliary_files": "e9"}, "'e9'.*base"),
        ({"leaf_rules": ["mlq => base"]}, "match no leaf: mlq"),
        ({"method": "ties(weights=(1, 2, 3))"}, "3 weights for 2 experts"),
    ):
        with pytest.raises(UserError, match=words):
            attempt(own[0], own[1].values(), tmp_path / "out", **settings)
    assert not list(tmp_path.glob("out*"))


def test_no_experts_and_a_missing_base_are_said(own, tmp_path):
    with pytest.raises(UserError, match="no experts"):
        attempt(own[0], [], tmp_path / "out")
    with pytest.raises(UserError, match="ties: this needs the base"):
        stream.merge_checkpoints(
            None, list(own[1].values()), "ties()", str(tmp_path / "out")
        )
    with pytest.raises(UserError, match="no checkpoint at .*nowhere"):
        attempt(tmp_path / "nowhere", own[1].values(), tmp_path / "out")


def test_another_merge_does_not_go_on_with_what_one_left(own, tmp_path):
    def change(leaves):
        leaves["one"][0] = np.nan

    bad = spoiled(tmp_path / "bad", change)
    with pytest.raises(UserError, match="NaN"):
        attempt(own[0], [bad], tmp_path / "out", "ties(density=0.2)")
    with pytest.raises(UserError, match="unfinished output of another merge: settings"):
        attempt(own[0], [bad], tmp_path / "out", "ties(density=0.3)")


def test_float64_needs_x64(tmp_path):
    wide = {"w": np.ones(4)}
    base = models.save(tmp_path / "base", wide)
    expert = models.save(tmp_path / "e", wide)
    with pytest.raises(UserError, match="w: float64 in 'the base'; set JAX_ENABLE_X64"):
        attempt(base, [expert], tmp_path / "out")


def test_float64_out_of_float32_models_needs_x64_too(family, tmp_path):
    base, experts = family
    with pytest.raises(UserError, match="dtype float64.*JAX_ENABLE_X64=1"):
        stream.merge_checkpoints(
            base, experts, "ties()", str(tmp_path / "out"), dtype="float64"
        )
    assert not list(tmp_path.iterdir())


def test_an_experts_name_depends_on_no_other_expert():
    assert expert_names(["x/final", "x/last"]) == {"final": "x/final", "last": "x/last"}
    with pytest.raises(UserError, match="both called 'final'.* x=x/final,y=y/final"):
        expert_names(["x/final", "y/final"])
    named = expert_names(["qa=x/final", "nli=y/final", "z/final/"])
    assert named == {"qa": "x/final", "nli": "y/final", "final": "z/final/"}
    assert expert_names(["a/x", "b/y", "a/x"]) == {"x": "a/x", "y": "b/y", "x#2": "a/x"}


def test_a_folder_with_an_equals_sign_in_its_name_is_a_folder(tmp_path):
    (tmp_path / "lr=1").mkdir()
    path = str(tmp_path / "lr=1")
    assert expert_names([path]) == {"lr=1": path}
