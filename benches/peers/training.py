"""How rivals are trained and judged: KL of the teacher to the student, alike for all."""

import math
import time

import torch

# Tokens whose logits are there at once, where nothing has to be kept.
CHUNK = 1024


class Kl(torch.autograd.Function):
    """The mean over tokens of KL(teacher || student), in nats, at temperature 1, which is burn-lti's default loss.

    Its gradient with respect to the student's logits is the difference of both distributions.
    """

    @staticmethod
    def forward(context, student, teacher):
        theirs, ours = teacher.log_softmax(-1), student.log_softmax(-1)
        p = theirs.exp()
        kl = (p * (theirs - ours)).sum() / len(p)
        context.save_for_backward((ours.exp_() - p) / len(p))
        return kl

    @staticmethod
    def backward(context, gradient):
        return context.saved_tensors[0] * gradient, None


class Lessons:
    """What the steps of a seed read, and what the teacher's head reads there: the same for every student."""

    def __init__(self, teacher, windows, steps, batch_size, seed):
        order = torch.Generator().manual_seed(seed)
        rows = []
        while len(rows) < steps * batch_size:
            rows += torch.randperm(len(windows), generator=order).tolist()
        self.teacher = teacher.output
        self.rows = torch.tensor(rows[: steps * batch_size]).view(steps, batch_size)
        self.windows = windows
        with torch.no_grad():
            self.features = [teacher.features(windows.batch(rows)) for rows in self.rows]

    def __len__(self):
        return len(self.rows)

    @property
    def tokens(self):
        """Those that count."""
        return sum(len(features) for features in self.features)


def train(student, lessons, rate, what):
    """A trained copy: AdamW, linear warm-up over a tenth of the steps, cosine decay to a tenth of the rate, clipped
    at norm 1, as burn-lti trains at one rate for all tensors."""
    student = student.copy()
    parameters = student.parameters(what)
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    steps = len(lessons)
    for step, (rows, features) in enumerate(zip(lessons.rows, lessons.features)):
        warm = min(1.0, (step + 1) / max(1, steps // 10))
        part = 0.1 + 0.45 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate * warm * part
        loss = Kl.apply(student.logits(lessons.windows.batch(rows)), features @ lessons.teacher.t())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    for parameter in parameters:
        parameter.requires_grad_(False)
    return student


class Judge:
    """Held-out windows, and what the teacher's head reads there."""

    def __init__(self, teacher, batches):
        self.teacher, self.batches = teacher.output, batches
        with torch.no_grad():
            self.features = [teacher.features(batch) for batch in batches]

    @torch.no_grad()
    def __call__(self, student):
        """KL in nats a token, how often the likeliest token is the same, and the tokens."""
        kl = same = tokens = 0
        for batch, features in zip(self.batches, self.features):
            # Logits of a few tokens at a time.
            for theirs, ours in zip(features.split(CHUNK), student.features(batch).split(CHUNK)):
                theirs = (theirs @ self.teacher.t()).log_softmax(-1)
                ours = (ours @ student.output.t()).log_softmax(-1)
                kl += (theirs.exp() * (theirs - ours)).double().sum().item()
                same += (theirs.argmax(-1) == ours.argmax(-1)).sum().item()
                tokens += len(theirs)
        return kl / tokens, same / tokens, tokens


@torch.no_grad()
def by_transformers(teacher, student, windows, size=25):
    """KL(teacher || student) of two folders, as transformers computes both, over documents alone."""
    from transformers import AutoModelForCausalLM

    models = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval() for folder in (teacher, student)]
    kl = tokens = 0
    for batch in windows.batches(0, len(windows), size):
        theirs, ours = (model(batch["ids"]).logits.log_softmax(-1)[batch["counts"]] for model in models)
        kl += (theirs.exp() * (theirs - ours)).double().sum().item()
        tokens += len(theirs)
    return kl / tokens


def timed(function, *arguments):
    """What it gives, and the seconds that it took."""
    began = time.perf_counter()
    result = function(*arguments)
    return result, time.perf_counter() - began
