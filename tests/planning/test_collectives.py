"""Exchanges read from XLA's text: kinds, groups, loops, and what each must send."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from merging.planning import collectives
from merging.planning.collectives import Collective
from merging.runtime import sharding

PROGRAM = """\
HloModule jit_f, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {{
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}}

%all-reduce-scatter.1 (p: f32[64]) -> f32[8] {{
  %p = f32[64]{{0}} parameter(0)
  %all = f32[64]{{0}} all-reduce(%p), replica_groups=[1,8]<=[8], to_apply=%add
  ROOT %cut = f32[8]{{0}} dynamic-slice(%all), dynamic_slice_sizes={{8}}
}}

%body (state: (s32[], bf16[16,8])) -> (s32[], bf16[16,8]) {{
  %state = (s32[], bf16[16,8]{{1,0}}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %w = bf16[16,8]{{1,0}} get-tuple-element(%state), index=1
  %moved = bf16[16,8]{{1,0}} collective-permute(%w), {pairs}
  %after = s32[] add(%next, %one)
  ROOT %out = (s32[], bf16[16,8]{{1,0}}) tuple(%after, %moved)
}}

%cond (state.1: (s32[], bf16[16,8])) -> pred[] {{
  %state.1 = (s32[], bf16[16,8]{{1,0}}) parameter(0)
  %j = s32[] get-tuple-element(%state.1), index=0
  %end = s32[] constant(16)
  ROOT %less = pred[] compare(%j, %end), direction=LT
}}

ENTRY %main (a: f32[64], b: bf16[16,8]) -> f32[8] {{
  %a = f32[64]{{0}} parameter(0)
  %b = bf16[16,8]{{1,0}} parameter(1)
  %zero = s32[] constant(0)
  %begin = (s32[], bf16[16,8]{{1,0}}) tuple(%zero, %b)
  %loop = (s32[], bf16[16,8]{{1,0}}) while(%begin), condition=%cond, body=%body
  {line}
  ROOT %r = f32[8]{{0}} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1
}}
"""
PAIRS = "source_target_pairs={{0,1},{1,0}}"


def read(line="", domain=8):
    return {
        c.kind: c
        for c in collectives.read(PROGRAM.format(line=line, pairs=PAIRS), 8, domain)
    }


def test_a_loop_counts_as_often_as_its_counter_says():
    # From 0 below 16 in steps of two, each moving 16 x 8 bfloat16.
    assert read()["collective-permute"] == Collective(
        "collective-permute", False, 8, 8 * 256.0, 256.0
    )


def test_an_all_reduce_that_is_cut_at_once_is_a_reduce_scatter():
    found = read()
    assert "all-reduce" not in found
    assert found["reduce-scatter"] == Collective("reduce-scatter", False, 1, 224, 32)


@pytest.mark.parametrize(
    ("groups", "size", "far"),
    [
        ("replica_groups=[2,4]<=[8]", 4, False),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", 2, True),
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", 4, False),
        ("replica_groups=mesh['data'=2,'fsdp'=4] {'fsdp'}", 4, False),
        ("replica_groups=mesh['data'=2,'fsdp'=4] {'data'}", 2, True),
        ("replica_groups={}", 8, True),
    ],
)
def test_groups_say_how_many_exchange_and_whether_over_the_network(groups, size, far):
    line = f"%g = bf16[8,100]{{1,0}} all-gather(%b), {groups}, dimensions={{0}}"
    found = read(line, domain=4)["all-gather"]
    assert found == Collective("all-gather", far, 1, 1600 * (size - 1) / size, 1600)


def test_an_overlapped_exchange_counts_once_and_by_its_result():
    line = (
        "%s = (bf16[2,100]{1,0}, bf16[16,100]{1,0}, u32[]) all-gather-start(%b), "
        "replica_groups=[1,8]<=[8], dimensions={0}\n"
        "  %d = bf16[16,100]{1,0} all-gather-done(%s)"
    )
    assert read(line)["all-gather"] == Collective(
        "all-gather", False, 1, 3200 * 7 / 8, 3200
    )


def test_text_of_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        collectives.read("nothing", 8, 8)


def test_a_real_scan_over_layers_gathers_each_layer_once():
    mesh = sharding.make_mesh({"fsdp": 8}, jax.devices()[:8])

    def run(x, weights):
        x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)
        return x

    rows = NamedSharding(mesh, P("fsdp"))
    x = jax.ShapeDtypeStruct((16, 64), jnp.float32, sharding=rows)
    cut = NamedSharding(mesh, P(None, "fsdp"))
    w = jax.ShapeDtypeStruct((5, 64, 64), jnp.float32, sharding=cut)
    text = jax.jit(run, out_shardings=rows).lower(x, w).compile().as_text()
    (found,) = collectives.read(text, 8, 8)
    layer = 64 * 64 * 4
    assert found == Collective("all-gather", False, 5, 5 * layer * 7 / 8, layer)
