"""Training steps of a learn-to-init student in PyTorch and transformers.

The student is the teacher with fewer heads. Each of its attention projections is a map of the teacher's,
which begins as the start `grouped`; only the maps train. The loss is alpha T^2 KL + (1 - alpha) CE.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from common import grouped, grouped_general, measure, threads, tokens

ALPHA, TEMPERATURE, LEARNING_RATE, GRAD_CLIP = 0.9, 2.0, 1e-3, 1.0

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--teacher", required=True)
parser.add_argument("--heads", type=int, required=True)
parser.add_argument("--kv-heads", type=int, required=True)
parser.add_argument("--map", choices=["factored", "general"], default="factored")
parser.add_argument("--batch-size", type=int, default=2)
parser.add_argument("--seq-len", type=int, default=256)
parser.add_argument("--steps", type=int, default=6)
parser.add_argument("--device", default="cpu", help="where to compute: cpu, cuda")
parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32", help="of products, by autocast")
parser.add_argument("--compile", action="store_true", help="let torch.compile fuse it")
arguments = parser.parse_args()
torch.set_num_threads(threads())


class LtiLinear(nn.Module):
    """A projection whose kernel is a map of a teacher's weight, `[out, in]`."""

    def __init__(self, weight, t_heads, s_heads, size, output):
        super().__init__()
        self.output = output
        width = weight.shape[0] if output else weight.shape[1]
        grid = (t_heads, size)
        c = weight.detach().t().reshape((*grid, width) if output else (width, *grid))
        self.register_buffer("c", c.contiguous())
        if arguments.map == "general":
            self.w = nn.Parameter(torch.from_numpy(grouped_general(t_heads, s_heads, size, output)))
        else:
            a, b = grouped(t_heads, s_heads, size, output)
            self.a, self.b = nn.Parameter(torch.from_numpy(a)), nn.Parameter(torch.from_numpy(b))

    def kernel(self):
        if arguments.map == "general":
            return torch.einsum("xyb,xyuv->uvb" if self.output else "bxy,xyuv->buv", self.c, self.w)
        if self.output:
            return torch.einsum("yub,vy->uvb", torch.einsum("xyb,xu->yub", self.c, self.a), self.b)
        return torch.einsum("buy,yv->buv", torch.einsum("bxy,xu->buy", self.c, self.a), self.b)

    def forward(self, x):
        k = self.kernel()
        return x @ (k.flatten(0, 1) if self.output else k.flatten(1, 2))


def make_student(teacher):
    """The teacher with other heads, all but its attention copied and frozen."""
    config = AutoConfig.from_pretrained(arguments.teacher)
    config.num_attention_heads, config.num_key_value_heads = arguments.heads, arguments.kv_heads
    config.head_dim = teacher.config.head_dim
    student = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    kept = {k: v for k, v in teacher.state_dict().items() if "self_attn" not in k}
    student.load_state_dict(kept, strict=False)
    student.tie_weights()
    student.requires_grad_(False)
    heads, kv_heads = teacher.config.num_attention_heads, teacher.config.num_key_value_heads
    for layer, of_teacher in zip(student.model.layers, teacher.model.layers):
        for name, t_heads, s_heads in (
            ("q_proj", heads, arguments.heads),
            ("k_proj", kv_heads, arguments.kv_heads),
            ("v_proj", kv_heads, arguments.kv_heads),
            ("o_proj", heads, arguments.heads),
        ):
            weight = getattr(of_teacher.self_attn, name).weight
            lti = LtiLinear(weight, t_heads, s_heads, config.head_dim, name == "o_proj")
            setattr(layer.self_attn, name, lti)
    return student


teacher = AutoModelForCausalLM.from_pretrained(arguments.teacher, dtype=torch.float32)
teacher.eval().requires_grad_(False)
student = make_student(teacher)
teacher.to(arguments.device)
student.to(arguments.device)
parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE)
shape = (arguments.batch_size, arguments.seq_len)
text, targets = (
    torch.from_numpy(tokens(seed, shape, teacher.config.vocab_size)).to(arguments.device) for seed in (1, 2)
)
targets = targets.flatten()


def teacher_logits():
    with torch.no_grad():
        return teacher(text, use_cache=False).logits


def loss_against(teacher_logits):
    ours = student(text, use_cache=False).logits.flatten(0, 1)
    theirs = teacher_logits.flatten(0, 1)
    kl = F.kl_div(
        F.log_softmax(ours / TEMPERATURE, -1),
        F.log_softmax(theirs / TEMPERATURE, -1),
        log_target=True,
        reduction="batchmean",
    )
    return ALPHA * TEMPERATURE**2 * kl + (1 - ALPHA) * F.cross_entropy(ours, targets)


if arguments.compile:
    teacher_logits, loss_against = torch.compile(teacher_logits), torch.compile(loss_against)


def step():
    with torch.autocast(arguments.device, torch.bfloat16, enabled=arguments.precision == "bfloat16"):
        loss = loss_against(teacher_logits())
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, GRAD_CLIP)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


measure(arguments.steps, step)
