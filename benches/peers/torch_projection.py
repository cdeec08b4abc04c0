"""One learn-to-init projection in PyTorch: forward and backward, the kernel made every time."""

import argparse

import torch

from common import CASES, TOKENS, grouped, grouped_general, measure, threads, uniform

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--case", choices=CASES, required=True)
parser.add_argument("--steps", type=int, default=8)
parser.add_argument("--device", default="cpu", help="where to compute: cpu, cuda")
arguments = parser.parse_args()
torch.set_num_threads(threads())

width, t_heads, s_heads, size, general, output = CASES[arguments.case]
grid = (t_heads, size)


def tensor(values):
    return torch.from_numpy(values).to(arguments.device)


c = tensor(uniform(3, (*grid, width) if output else (width, *grid), 0.02))
x = tensor(uniform(4, (TOKENS, s_heads * size if output else width), 1.0)).requires_grad_()
make = grouped_general if general else grouped
start = make(t_heads, s_heads, size, output)
maps = [tensor(values).requires_grad_() for values in ([start] if general else start)]


def kernel():
    """As a matrix, the map applied as the method says: heads before head features."""
    if general:
        k = torch.einsum("xyb,xyuv->uvb" if output else "bxy,xyuv->buv", c, maps[0])
    elif output:
        k = torch.einsum("yub,vy->uvb", torch.einsum("xyb,xu->yub", c, maps[0]), maps[1])
    else:
        k = torch.einsum("buy,yv->buv", torch.einsum("bxy,xu->buy", c, maps[0]), maps[1])
    return k.reshape(-1, width) if output else k.reshape(width, -1)


def step():
    for parameter in (*maps, x):
        parameter.grad = None
    loss = (x @ kernel()).square().mean()
    loss.backward()
    return loss.item()


measure(arguments.steps, step)
