"""What is read from the text of compiled programs: made by XLA on 8 forced devices, and lines that TPUs and GPUs print."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from cfmlc_jax.engine import hlo
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.engine.hlo import Collective

# Lines as XLA prints them for TPUs and GPUs, with their layouts and asynchronous pairs; the arrays are made smaller.
OTHER_PLATFORMS = """
HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%add.clone (x: f32[], y: f32[]) -> f32[] {
  %x = f32[]{:T(128)} parameter(0)
  %y = f32[]{:T(128)} parameter(1)
  ROOT %add = f32[]{:T(128)} add(%x, %y)
}

%async_computation (param_0: f32[64,16]) -> f32[8,16] {
  %param_0 = f32[64,16]{1,0:T(8,128)} parameter(0)
  ROOT %reduce-scatter.1 = f32[8,16]{1,0:T(8,128)} reduce-scatter(%param_0), channel_id=3, replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}, to_apply=%add.clone
}

%branch_a (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %collective-permute = f32[8]{0} collective-permute(%p), channel_id=9, source_target_pairs={{0,1},{1,0}}
}

%branch_b (q: f32[8]) -> f32[8] {
  ROOT %q = f32[8]{0} parameter(0)
}

ENTRY %main.1_spmd (w: f32[64,16], b: bf16[8,4]) -> f32[8,16] {
  %w = f32[64,16]{1,0:T(8,128)} parameter(0), metadata={op_name="body=%add.clone \\"(all-reduce("}
  %b = bf16[8,4]{1,0:T(8,128)(2,1)} parameter(1)
  %all-gather-start = (bf16[8,4]{1,0:T(8,128)(2,1)}, bf16[64,4]{1,0:T(8,128)(2,1)S(1)}) all-gather-start(%b), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}
  %all-gather-done = bf16[64,4]{1,0:T(8,128)(2,1)} all-gather-done(%all-gather-start)
  %all-reduce.7 = (f32[64,16]{1,0:T(8,128)}, /*index=1*/f32[64,16]{1,0:T(8,128)}) all-reduce(%w, %w), channel_id=2, replica_groups=[1,8]<=[8], to_apply=%add.clone
  %all-reduce-start = f32[64,16]{1,0} all-reduce-start(%w), channel_id=4, to_apply=%add.clone
  %all-reduce-done = f32[64,16]{1,0} all-reduce-done(%all-reduce-start)
  %rs = ((f32[64,16]{1,0:T(8,128)}), f32[8,16]{1,0:T(8,128)}, u32[]{:S(2)}) async-start(%w), calls=%async_computation
  %conditional = f32[8]{0} conditional(%index, %c, %c), branch_computations={%branch_a, %branch_b}
  ROOT %rs.done = f32[8,16]{1,0:T(8,128)} async-done(%rs)
}
"""


@pytest.fixture(scope="module")
def compiled():
    """Three steps of gradient descent in a scan; each adds up a number over all devices."""
    mesh = meshes.create(4)
    weights = NamedSharding(mesh, PartitionSpec(None, meshes.FSDP))

    def train(w, batches):
        def step(w, x):
            gradient = jax.grad(lambda w: (jnp.tanh(x @ w) ** 2).sum())(w)
            return w - gradient, gradient.sum()

        return jax.lax.scan(step, w, batches.reshape(3, -1, batches.shape[-1]))

    jitted = jax.jit(
        train,
        in_shardings=(weights, meshes.batch_sharding(mesh)),
        out_shardings=(weights, meshes.replicated(mesh)),
    )
    shapes = (jax.ShapeDtypeStruct((256, 512), jnp.float32), jax.ShapeDtypeStruct((48, 256), jnp.float32))
    return jitted.lower(*shapes).compile()


def test_collectives_in_a_loop_count_once_for_each_trip(compiled):
    found = hlo.Program(compiled.as_text()).collectives()
    # The batch is cut into three parts that do not end where devices do: it is gathered, once.
    assert found == {"all-reduce": Collective(3, 3 * 4), "all-gather": Collective(1, 48 * 256 * 4)}


def test_bytes_of_a_loop_count_once_for_each_trip(compiled):
    # Almost everything but the gathering happens in the loop.
    assert 2 < hlo.Program(compiled.as_text()).repeated_bytes() < 3


def test_asynchronous_pairs_tuples_tilings_and_branches():
    assert hlo.Program(OTHER_PLATFORMS).collectives() == {
        "all-reduce": Collective(2, 3 * 64 * 16 * 4),
        "all-gather": Collective(1, 64 * 4 * 2),
        "reduce-scatter": Collective(1, 64 * 16 * 4),
        "collective-permute": Collective(1, 8 * 4),
    }


def test_a_program_without_loops_or_collectives():
    program = hlo.Program(jax.jit(jnp.sin).lower(jnp.ones(3)).compile().as_text())
    assert program.collectives() == {}
    assert program.repeated_bytes() == 1


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[8,4]{1,0}", 128),
        ("(f32[3], /*index=1*/(s32[], pred[7]))", 12 + 4 + 7),
        ("bf16[<=8,2]{1,0:T(8,128)(2,1)S(1)}", 32),
        ("s4[5]", 3),
        ("c64[2]", 16),
        ("f8e4m3fn[6]", 6),
        ("token[]", 0),
    ],
)
def test_bytes_of_shapes(shape, size):
    assert hlo.shape_bytes(shape) == size
