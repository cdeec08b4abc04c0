"""Students with fewer heads, by the methods of others. Each takes the teacher's `Seen` and gives a `Llama`.

| | |
|---|---|
| `mean` | key and value heads of a group of neighbours averaged (Ainslie et al. 2023, arXiv 2305.13245) |
| `aligned` | heads turned to one another before they are averaged (Jin et al. 2024, arXiv 2412.20677) |
| `pick` | the heads of largest activation (Muralidharan et al. 2024, Minitron, arXiv 2407.14679) |
| `grouped` | every projection averaged, outputs summed: burn-lti's `start = "grouped"` |
| `random` | attention as transformers initialises it |
| `low-rank` | one low-rank cache of keys and values (Palu, Chang et al. 2024, arXiv 2407.21118; ASVD, Yuan et al. 2023, arXiv 2312.05821): no ordinary Llama |

Where a group has more query heads than the student, `mean` and `aligned` keep those of largest activation.
"""

import itertools

import torch

from llama import Llama, by_heads, flat


class Seen:
    """What a teacher shows of itself on a text: statistics of its activations, layer by layer."""

    @torch.no_grad()
    def __init__(self, teacher, batches, judge):
        self.teacher = teacher
        # Says how far a candidate is from the teacher, on a text that it may be chosen by.
        self.judge = judge
        count = len(teacher.layers)
        self.normed = [[] for _ in range(count)]
        self.streams = [[] for _ in range(count + 1)]
        self.middles = [[] for _ in range(count)]
        self.head_norms = [0.0] * count
        self.unit_sizes = [0.0] * count
        tokens = 0
        for batch in batches:
            there = batch["there"]
            tokens += there.sum().item()

            def see(index, hidden, normed, read, middle, active):
                self.normed[index].append(normed[there])
                self.streams[index].append(hidden[there])
                self.middles[index].append(middle[there])
                norms = read[there].view(-1, teacher.heads, teacher.head_dim).norm(dim=-1)
                self.head_norms[index] = self.head_norms[index] + norms.sum(0)
                self.unit_sizes[index] = self.unit_sizes[index] + active[there].abs().sum(0)

            self.streams[count].append(teacher.hidden(batch, see)[there])
        join = lambda lists: [torch.cat(parts) for parts in lists]
        self.normed, self.streams, self.middles = join(self.normed), join(self.streams), join(self.middles)
        self.head_norms = [norms / tokens for norms in self.head_norms]
        self.unit_sizes = [sizes / tokens for sizes in self.unit_sizes]


def split(model, layer):
    """The four projections by heads, `[heads, head_dim, width]`, the output's turned."""
    q, k, v = (by_heads(layer[name], model.head_dim) for name in ("q", "k", "v"))
    return q, k, v, by_heads(layer["o"].t().contiguous(), model.head_dim)


def with_attention(teacher, layers, heads, kv_heads, kind=Llama):
    """The teacher with these projections, by heads, in its layers."""
    student = teacher.as_a(kind)
    student.config.update(num_attention_heads=heads, num_key_value_heads=kv_heads)
    for layer, (q, k, v, o) in zip(student.layers, layers):
        layer.update(q=flat(q), k=flat(k), v=flat(v), o=flat(o).t().contiguous())
    return student


def neighbours(count, groups):
    return [part.tolist() for part in torch.arange(count).tensor_split(groups)]


def kept_queries(seen, index, group, size):
    """Of the query heads that read key/value heads `group`, the `size` of largest activation, in order."""
    teacher = seen.teacher
    each = teacher.heads // teacher.kv_heads
    queries = [kv * each + i for kv in group for i in range(each)]
    norms = seen.head_norms[index]
    return sorted(sorted(queries, key=lambda query: -norms[query].item())[:size])


def pooled(seen, heads, kv_heads, groups, layers):
    """Keys and values of `groups` averaged, layer by layer."""
    made = []
    for index, (q, k, v, o) in enumerate(layers):
        of_layer = groups[index]
        queries = [query for group in of_layer for query in kept_queries(seen, index, group, heads // kv_heads)]
        mean = lambda x: torch.stack([x[group].mean(0) for group in of_layer])
        made.append((q[queries], mean(k), mean(v), o[queries]))
    return with_attention(seen.teacher, made, heads, kv_heads)


def mean(seen, heads, kv_heads, seed):
    teacher = seen.teacher
    groups = [neighbours(teacher.kv_heads, kv_heads)] * len(teacher.layers)
    return pooled(seen, heads, kv_heads, groups, [split(teacher, layer) for layer in teacher.layers])


def grouped(seen, heads, kv_heads, seed):
    teacher = seen.teacher
    queries, keys = neighbours(teacher.heads, heads), neighbours(teacher.kv_heads, kv_heads)
    made = []
    for layer in teacher.layers:
        q, k, v, o = split(teacher, layer)
        mean = lambda x, groups: torch.stack([x[group].mean(0) for group in groups])
        made.append((mean(q, queries), mean(k, keys), mean(v, keys), torch.stack([o[group].sum(0) for group in queries])))
    return with_attention(teacher, made, heads, kv_heads)


def pick(seen, heads, kv_heads, seed):
    teacher = seen.teacher
    each, size = teacher.heads // teacher.kv_heads, heads // kv_heads
    made = []
    for index, layer in enumerate(teacher.layers):
        q, k, v, o = split(teacher, layer)
        sizes = seen.head_norms[index].view(teacher.kv_heads, each).sum(1)
        if size <= each:
            kept = sorted(sizes.topk(kv_heads).indices.tolist())
            queries = [query for kv in kept for query in kept_queries(seen, index, [kv], size)]
        else:
            # More query heads than one of the teacher's key/value heads has: those of a group read its strongest.
            groups = neighbours(teacher.kv_heads, kv_heads)
            kept = [max(group, key=lambda kv: sizes[kv].item()) for group in groups]
            queries = [query for group in groups for query in kept_queries(seen, index, group, size)]
        made.append((q[queries], k[kept], v[kept], o[queries]))
    return with_attention(teacher, made, heads, kv_heads)


def random(seen, heads, kv_heads, seed):
    teacher = seen.teacher
    numbers = torch.Generator().manual_seed(seed)
    std = teacher.config.get("initializer_range", 0.02)
    draw = lambda count: std * torch.randn(count, teacher.head_dim, teacher.width, generator=numbers)
    made = [(draw(heads), draw(kv_heads), draw(kv_heads), draw(heads)) for _ in teacher.layers]
    return with_attention(teacher, made, heads, kv_heads)


# Heads turned to one another.


def complex_pairs(x):
    """`[.., head_dim]` with the two features of a rotary pair as one complex number."""
    half = x.shape[-1] // 2
    return torch.complex(x[..., :half], x[..., half:])


def real_pairs(z):
    return torch.cat([z.real, z.imag], -1)


def turns_of_values(outputs, rounds=30):
    """Orthogonal matrices `Q_i` for which the `outputs_i @ Q_i` (`[tokens, head_dim]` each) come together: by turns
    each is turned to the sum of the others (generalised Procrustes, Gower 1975)."""
    cross = [[a.t() @ b for b in outputs] for a in outputs]

    def nearest(matrix):
        left, _, right = torch.linalg.svd(matrix)
        return left @ right

    turns = [torch.eye(len(cross[0][0]), dtype=outputs[0].dtype)] + [nearest(row[0]) for row in cross[1:]]
    if len(outputs) > 2:
        for _ in range(rounds):
            for i, row in enumerate(cross):
                turns[i] = nearest(sum(block @ turn for j, (block, turn) in enumerate(zip(row, turns)) if j != i))
    return turns


def turns_of_keys(outputs, rounds=30):
    """The same for keys, where what commutes with the rotary embedding is a phase for each pair."""
    outputs = [complex_pairs(x) for x in outputs]
    cross = [[(a.conj() * b).sum(0) for b in outputs] for a in outputs]
    phase = lambda z: torch.where(z.abs() > 0, z / z.abs().clamp_min(1e-30), torch.ones_like(z))
    turns = [torch.ones_like(cross[0][0])] + [phase(row[0]) for row in cross[1:]]
    if len(outputs) > 2:
        for _ in range(rounds):
            for i, row in enumerate(cross):
                turns[i] = phase(sum(block * turn for j, (block, turn) in enumerate(zip(row, turns)) if j != i))
    return turns


def turned_pairs(weight, phases):
    """Rows of a head, `[head_dim, width]`, whose outputs are turned by these phases."""
    return real_pairs((complex_pairs(weight.t().double()) * phases)).t().float()


def partitions(items, size):
    """All ways to part `items` into groups of `size`."""
    if not items:
        yield []
        return
    first, rest = items[0], items[1:]
    for others in itertools.combinations(rest, size - 1):
        left = [item for item in rest if item not in others]
        for groups in partitions(left, size):
            yield [[first, *others], *groups]


def likeness(outputs, turns):
    """How well two heads agree when one is turned to the other: minus the squared distance, a token."""
    count = len(outputs)
    like = torch.zeros(count, count)
    for i, j in itertools.combinations(range(count), 2):
        _, turn = turns([outputs[i], outputs[j]])
        there = real_pairs(complex_pairs(outputs[j]) * turn) if turn.is_complex() else outputs[j] @ turn
        like[i, j] = -(outputs[i] - there).pow(2).sum(1).mean()
    return like


def aligned(seen, heads, kv_heads, seed):
    """By the distance or the cosine of heads, grouped as neighbours or by keys or values: the best by KL on the text
    that it is chosen by, as the paper chooses."""
    teacher = seen.teacher
    if teacher.kv_heads % kv_heads:
        raise SystemExit(f"aligned: {kv_heads} key/value heads do not divide the teacher's {teacher.kv_heads}")
    best = None
    for by, grouping in itertools.product(("distance", "cosine"), ("neighbours", "keys", "values")):
        student = aligned_by(seen, heads, kv_heads, by, grouping)
        kl = seen.judge(student)[0]
        if best is None or kl < best[0]:
            best = (kl, student, f"{by}, {grouping}")
    best[1].note = best[2]
    return best[1]


def aligned_by(seen, heads, kv_heads, by, grouping):
    teacher = seen.teacher
    layers, groups = [], []
    each = teacher.heads // teacher.kv_heads
    for layer, normed in zip(teacher.layers, seen.normed):
        q, k, v, o = (x.clone() for x in split(teacher, layer))
        normed = normed[:: max(1, len(normed) // 8192)]
        outputs = {}
        for name, weight in (("keys", k), ("values", v)):
            outputs[name] = [(normed @ head.t()).double() for head in weight]
            if by == "cosine":
                outputs[name] = [x / x.norm(dim=1, keepdim=True).clamp_min(1e-30) for x in outputs[name]]
        if grouping == "neighbours":
            chosen = neighbours(teacher.kv_heads, kv_heads)
        else:
            like = likeness(outputs[grouping], turns_of_keys if grouping == "keys" else turns_of_values)
            inside = lambda group: sum(like[i, j].item() for i, j in itertools.combinations(group, 2))
            every = partitions(list(range(teacher.kv_heads)), teacher.kv_heads // kv_heads)
            chosen = max(every, key=lambda groups: sum(map(inside, groups)))
        for group in chosen:
            phases = turns_of_keys([outputs["keys"][kv] for kv in group])
            matrices = turns_of_values([outputs["values"][kv] for kv in group])
            for kv, phase, matrix in zip(group, phases, matrices):
                matrix = matrix.float()
                k[kv], v[kv] = turned_pairs(k[kv], phase), matrix.t() @ v[kv]
                for query in range(kv * each, (kv + 1) * each):
                    q[query], o[query] = turned_pairs(q[query], phase), matrix.t() @ o[query]
        layers.append((q, k, v, o))
        groups.append(chosen)
    return pooled(seen, heads, kv_heads, groups, layers)


# One cache of low rank for keys and values.


class LowRank(Llama):
    """Caches `down @ x`, of as many floats as key/value heads would have, and makes keys and values of it, before
    the rotary embedding, for every query head."""

    @property
    def is_ordinary(self):
        return False

    def attention_names(self):
        return ("q", "cached", "to_k", "to_v", "o")

    def queries_keys_values(self, layer, normed):
        cached = normed @ layer["cached"].t()
        read_by = layer["read_by"]
        each = lambda x: x.view(*x.shape[:2], -1, self.head_dim).index_select(2, read_by).flatten(2)
        return normed @ layer["q"].t(), each(cached @ layer["to_k"].t()), each(cached @ layer["to_v"].t())


def low_rank(seen, heads, kv_heads, seed):
    """Keys and values together, by the singular values of what they say on the text; how much keys count against
    values is the best of three by KL."""
    best = None
    for balance in (None, 1.0, 2.0):
        student = low_rank_by(seen, heads, kv_heads, balance)
        kl = seen.judge(student)[0]
        if best is None or kl < best[0]:
            best = (kl, student, f"values against keys: {balance or 'as they are'}")
    best[1].note = best[2]
    return best[1]


def low_rank_by(seen, heads, kv_heads, balance):
    teacher = seen.teacher
    each = teacher.heads // teacher.kv_heads
    student = with_attention(teacher, [split(teacher, layer) for layer in teacher.layers], heads, kv_heads, LowRank)
    for index, (layer, normed) in enumerate(zip(student.layers, seen.normed)):
        q, k, v, o = split(teacher, teacher.layers[index])
        queries = sorted(seen.head_norms[index].topk(heads).indices.tolist())
        used = sorted({query // each for query in queries})
        # The root of the inputs' second moments.
        values, vectors = torch.linalg.eigh((normed.t() @ normed).double() / len(normed))
        root = vectors * values.clamp_min(0).sqrt() @ vectors.t()
        keys, values = flat(k[used]).double(), flat(v[used]).double()
        scale = 1.0 if balance is None else balance * (values @ root).norm() / (keys @ root).norm()
        both = torch.cat([scale * keys, values])
        left = torch.linalg.svd(both @ root, full_matrices=False)[0]
        left = left[:, : 2 * kv_heads * teacher.head_dim]
        for name in ("k", "v"):
            del layer[name]
        layer.update(
            q=flat(q[queries]),
            o=flat(o[queries]).t().contiguous(),
            cached=(left.t() @ both).float().contiguous(),
            to_k=(left[: len(keys)] / scale).float().contiguous(),
            to_v=left[len(keys) :].float().contiguous(),
            read_by=torch.tensor([used.index(query // each) for query in queries]),
        )
    return student


METHODS = {
    "mean": mean,
    "aligned": aligned,
    "pick": pick,
    "grouped": grouped,
    "random": random,
    "low-rank": low_rank,
}
