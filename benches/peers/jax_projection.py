"""One learn-to-init projection in JAX, compiled: forward and backward, the kernel made every time."""

import argparse
import os

from common import CASES, TOKENS, grouped, grouped_general, measure, threads, uniform

# Read when JAX is imported.
os.environ["XLA_FLAGS"] = (
    f"--xla_cpu_multi_thread_eigen=true intra_op_parallelism_threads={threads()}"
)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--case", choices=CASES, required=True)
parser.add_argument("--steps", type=int, default=8)
arguments = parser.parse_args()

width, t_heads, s_heads, size, general, output = CASES[arguments.case]
grid = (t_heads, size)
c = jnp.asarray(uniform(3, (*grid, width) if output else (width, *grid), 0.02))
x = jnp.asarray(uniform(4, (TOKENS, s_heads, size) if output else (TOKENS, width), 1.0))
make = grouped_general if general else grouped
start = make(t_heads, s_heads, size, output)
maps = [jnp.asarray(values) for values in ([start] if general else start)]


def kernel(maps, c):
    """The map applied as the method says: heads before head features."""
    if general:
        return jnp.einsum("xyb,xyuv->uvb" if output else "bxy,xyuv->buv", c, maps[0])
    if output:
        return jnp.einsum("yub,vy->uvb", jnp.einsum("xyb,xu->yub", c, maps[0]), maps[1])
    return jnp.einsum("buy,yv->buv", jnp.einsum("bxy,xu->buy", c, maps[0]), maps[1])


def loss(maps, x, c):
    product = jnp.einsum("nuv,uvb->nb" if output else "nb,buv->nuv", x, kernel(maps, c))
    return jnp.mean(jnp.square(product))


value_and_gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


def step():
    # As an argument: the compiler would work with a constant `c` ahead of time.
    value, _ = jax.block_until_ready(value_and_gradient(maps, x, c))
    return value


measure(arguments.steps, step)
