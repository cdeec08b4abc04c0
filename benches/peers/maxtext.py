"""MaxText's learn-to-init, from its own start: every projection of attention is a map of the teacher's.

`K[b,u,v] = sum C[b,x,y] A[x,u] B[y,v]` for query, key and value, `K[u,v,b] = sum C[x,y,b] A[x,u] B[v,y]` for the
output, heads first; A and B begin as JAX's `lecun_normal`, by the fan-in of axis -2 (MaxText at e591f30,
`layers/learn_to_init_layer.py`). What is not attention is the teacher's. Where attention alone trains, A and B do;
else everything does, C too, which is what its trainer does where no list of parameters is given.
"""

import torch

from heads import split, with_attention
from llama import ATTENTION, NAMES, Llama


class Mapped(Llama):
    """A layer has, for each projection, `name.c` by heads (as `heads.split`), `name.a` and `name.b`."""

    def attention_names(self):
        return tuple(f"{name}.{part}" for name in ATTENTION for part in "ab")

    def parameters(self, train="all"):
        parameters = super().parameters(train)
        if train == "attention":
            return parameters
        return parameters + [layer[f"{name}.c"] for layer in self.layers for name in ATTENTION]

    def kernel(self, layer, name):
        """`[s_heads * s_head_dim, width]`"""
        c, a, b = (layer[f"{name}.{part}"] for part in "cab")
        b = b.t() if name == "o" else b
        return torch.einsum("uyw,yv->uvw", torch.einsum("xyw,xu->uyw", c, a), b).flatten(0, 1)

    def queries_keys_values(self, layer, normed):
        return tuple(normed @ self.kernel(layer, name).t() for name in ("q", "k", "v"))

    def out(self, layer):
        return self.kernel(layer, "o").t()

    def collapsed(self):
        """The ordinary Llama that it is."""
        layers = []
        for layer in self.layers:
            kernels = {name: self.kernel(layer, name).detach() for name in ATTENTION}
            kernels["o"] = kernels["o"].t().contiguous()
            layers.append({name: kernels[name] if name in kernels else layer[name] for name in NAMES})
        return self.as_a(Llama, layers=layers)


def lecun(shape, numbers):
    """A normal distribution cut at two standard deviations, of variance 1 / fan-in after the cut."""
    drawn = torch.empty(shape)
    torch.nn.init.trunc_normal_(drawn, a=-2.0, b=2.0, generator=numbers)
    return drawn / 0.87962566103423978 / shape[0] ** 0.5


def mapped(seen, heads, kv_heads, factors):
    """A student whose factors are `factors(name, shape)`."""
    teacher = seen.teacher
    student = with_attention(teacher, [split(teacher, layer) for layer in teacher.layers], heads, kv_heads, Mapped)
    for layer, of_teacher in zip(student.layers, teacher.layers):
        for name, c in zip(ATTENTION, split(teacher, of_teacher)):
            del layer[name]
            size = teacher.head_dim
            into = heads if name in ("q", "o") else kv_heads
            layer[f"{name}.c"] = c
            layer[f"{name}.a"] = factors((len(c), into))
            layer[f"{name}.b"] = factors((size, size))
    return student


def maxtext(seen, heads, kv_heads, seed):
    numbers = torch.Generator().manual_seed(seed)
    return mapped(seen, heads, kv_heads, lambda shape: lecun(shape, numbers))


def identity(seen, heads, kv_heads):
    """What keeps the teacher's function where nothing is smaller."""
    return mapped(seen, heads, kv_heads, lambda shape: torch.eye(*shape))
