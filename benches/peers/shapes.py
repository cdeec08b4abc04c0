"""Students with fewer units, layers or features, by the methods of others.

| | units | layers | width |
|---|---|---|---|
| `pick` (Minitron, arXiv 2407.14679) | of largest mean activation times the norm of what they add | all but the neighbours across which the stream turns least | channels of largest mean size behind the norms |
| `slice` (after SliceGPT, Ashkboos et al. 2024, arXiv 2401.15024) | | | the principal directions of the normed stream |
| `random` | feed-forward blocks as transformers initialises them | the same of whole layers | of all weights |
"""

import torch
import torch.nn.functional as F

FEED_FORWARD = ("gate", "up", "down")
# What reads the stream, by the norm that is before it.
READ = {"attention_norm": ("q", "k", "v"), "ff_norm": ("gate", "up")}
WRITE = ("o", "down")


def pick_units(seen, student, kept, units):
    """`kept` are the teacher's layers that the student has."""
    student = student.like()
    student.config["intermediate_size"] = units
    for layer, index in zip(student.layers, kept):
        sizes = seen.unit_sizes[index] * seen.teacher.layers[index]["down"].norm(dim=0)
        best = sizes.topk(units).indices.sort().values
        layer.update(gate=layer["gate"][best], up=layer["up"][best], down=layer["down"][:, best].contiguous())
    return student


def pick_layers(seen, layers):
    """The teacher's layers that stay: a run of neighbours goes, the one that turns the stream least."""
    count = len(seen.teacher.layers)
    gone = count - layers
    if gone == 0:
        return list(range(count))
    like = [
        F.cosine_similarity(seen.streams[at], seen.streams[at + gone], dim=-1).mean().item()
        for at in range(layers + 1)
    ]
    first = like.index(max(like))
    return [index for index in range(count) if not first <= index < first + gone]


def with_layers(student, kept):
    return student.like(layers=[dict(student.layers[index]) for index in kept])


def sites(seen, kept):
    """The stream at each norm of the layers `kept` and at the last, and the norm's gain."""
    for index in kept:
        layer = seen.teacher.layers[index]
        yield seen.streams[index], layer["attention_norm"]
        yield seen.middles[index], layer["ff_norm"]
    yield seen.streams[-1], seen.teacher.norm


def size(stream):
    return stream.pow(2).mean(-1, keepdim=True).sqrt()


def pick_width(seen, student, kept, width):
    teacher = seen.teacher
    sizes = sum(teacher.normed(stream, gain).abs().mean(0) for stream, gain in sites(seen, kept))
    best = sizes.topk(width).indices.sort().values
    layers = []
    for layer in student.layers:
        layers.append({name: x[best] if name in WRITE or "norm" in name else x[:, best].contiguous() for name, x in layer.items()})
    head = None if student.head is None else student.head[:, best].contiguous()
    return student.like(embedding=student.embedding[:, best].contiguous(), norm=student.norm[best], head=head, layers=layers)


def slice_width(seen, student, kept, width):
    """One basis for the whole stream, so that nothing has to stand on the residual connections and the student is an
    ordinary Llama; in SliceGPT each block has its own. Gains go into the weights behind them, and with them how much
    smaller the stream is in fewer directions; so embedding and head are no longer one."""
    moments = sum(
        (normed.t() @ normed).double()
        for normed in (seen.teacher.normed(stream, None) for stream, _ in sites(seen, kept))
    )
    basis = torch.linalg.eigh(moments)[1].flip(1)[:, :width].float()

    def smaller(stream):
        return (size(stream @ basis).mean() / size(stream).mean()).item()

    at = iter(list(sites(seen, kept)))
    layers = []
    for layer in student.layers:
        made = dict(layer)
        for norm, readers in READ.items():
            factor = smaller(next(at)[0])
            made[norm] = torch.ones(width)
            made.update({name: factor * (layer[name] * layer[norm]) @ basis for name in readers})
        made.update({name: (basis.t() @ layer[name]).contiguous() for name in WRITE})
        layers.append(made)
    head = smaller(next(at)[0]) * (student.output * student.norm) @ basis
    return student.like(embedding=student.embedding @ basis, norm=torch.ones(width), head=head, layers=layers)


def at_random(student, names, numbers):
    """With these weights of every layer as transformers initialises them, norms among them ones."""
    student = student.like()
    std = student.config.get("initializer_range", 0.02)
    for layer in student.layers:
        for name in names:
            x = layer[name]
            layer[name] = torch.ones(x.shape) if "norm" in name else std * torch.randn(x.shape, generator=numbers)
    return student


def random(seen, student, kept, units, width, seed):
    """What the shape touches is at random: units the feed-forward blocks, layers whole layers, width everything."""
    teacher = seen.teacher
    numbers = torch.Generator().manual_seed(seed)
    fewer_layers = len(kept) < len(teacher.layers)
    if units < teacher.units:
        student = pick_units(seen, student, kept, units)
    if width < teacher.width:
        student = pick_width(seen, student, kept, width)
        std = student.config.get("initializer_range", 0.02)
        draw = lambda x: None if x is None else std * torch.randn(x.shape, generator=numbers)
        student.embedding, student.head, student.norm = draw(student.embedding), draw(student.head), torch.ones(width)
    everything = tuple(student.layers[0])
    return at_random(student, everything if fewer_layers or width < teacher.width else FEED_FORWARD, numbers)


def reshaped(seen, student, method, units, layers, width, seed):
    """`student`, which has the teacher's other axes still, with these."""
    teacher = seen.teacher
    kept = layers if isinstance(layers, list) else pick_layers(seen, layers)
    student = with_layers(student, kept)
    if method == "random":
        unchanged = units == teacher.units and len(kept) == len(teacher.layers) and width == teacher.width
        return student if unchanged else random(seen, student, kept, units, width, seed)
    student = pick_units(seen, student, kept, units)
    if width == teacher.width and method == "pick":
        return student
    return {"pick": pick_width, "slice": slice_width}[method](seen, student, kept, width)
