"""Checks of the rivals on a teacher: `python rivals.py RECIPE --self-check`.

Where nothing is smaller, each method has to leave the teacher's function as it is; a student that differs in one weight
has to be seen. Text, loss and files are compared with the same by other means.
"""

import tempfile
import traceback

import torch
import torch.nn.functional as F

# Of the largest logit: float32, sums of up to a few hundred terms in five layers.
TOLERANCE = 1e-4


def difference(teacher, student, batch):
    """The largest between both models' logits, of the teacher's largest."""
    with torch.no_grad():
        theirs, ours = teacher.logits(batch), student.logits(batch)
    assert ours.isfinite().all(), "logits are not finite"
    return ((theirs - ours).abs().max() / theirs.abs().max()).item()


def unchanged(contest, batch):
    """Every method at the teacher's own shape."""
    import heads
    import maxtext
    import shapes

    teacher, seen = contest.teacher, contest.seen
    same = dict(heads=teacher.heads, kv_heads=teacher.kv_heads)
    students = {name: make(seen, **same, seed=0) for name, make in heads.METHODS.items() if name != "random"}
    students["maxtext"] = maxtext.identity(seen, **same)
    students["maxtext, collapsed"] = students["maxtext"].collapsed()
    every = dict(units=teacher.units, layers=len(teacher.layers), width=teacher.width, seed=0)
    for method in ("pick", "slice", "random"):
        students[f"shape by {method}"] = shapes.reshaped(seen, teacher, method, **every)
    for name, student in students.items():
        far = difference(teacher, student, batch)
        assert far < TOLERANCE, f"{name}: {far:.1e} from its teacher, though nothing is smaller"
        other = student.copy()
        name_of_one = next(key for key in other.layers[-1] if key in ("down", "gate"))
        other.layers[-1][name_of_one][0] += 0.5
        assert difference(teacher, other, batch) > TOLERANCE, f"{name}: a weight that differs is not seen"


def smaller(contest, batch, for_heads, for_shapes):
    """Turned keys and values give the same scores and sums as before they are averaged; every smaller student
    has the shape that it was asked for."""
    import heads

    teacher, seen = contest.teacher, contest.seen
    cos, sin = teacher.turns(torch.arange(5)[None])
    x = torch.randn(1, 1, 5, teacher.head_dim)
    half = teacher.head_dim // 2
    rotated = lambda y: y * cos + torch.cat([-y[..., half:], y[..., :half]], -1) * sin
    phase = torch.polar(torch.ones(half), torch.randn(half))
    turned = lambda y: heads.real_pairs(heads.complex_pairs(y) * phase)
    assert torch.allclose(turned(rotated(x)), rotated(turned(x)), atol=1e-5), "a phase does not commute with rotation"
    # Heads that are turns of one head come together.
    base = torch.randn(50, teacher.head_dim).double()
    matrices = [torch.linalg.qr(torch.randn(teacher.head_dim, teacher.head_dim).double())[0] for _ in range(3)]
    copies = [base @ matrix for matrix in matrices]
    together = [y @ turn for y, turn in zip(copies, heads.turns_of_values(copies))]
    assert torch.allclose(together[0], together[2], atol=1e-8), "values are not turned to one another"
    phases = [torch.polar(torch.ones(half), torch.randn(half)).to(torch.complex128) for _ in range(3)]
    copies = [heads.real_pairs(heads.complex_pairs(base) * phase) for phase in phases]
    together = [heads.complex_pairs(y) * turn for y, turn in zip(copies, heads.turns_of_keys(copies))]
    assert torch.allclose(together[0], together[2], atol=1e-8), "keys are not turned to one another"
    groups = list(heads.partitions([0, 1, 2, 3], 2))
    assert groups == [[[0, 1], [2, 3]], [[0, 2], [1, 3]], [[0, 3], [1, 2]]], groups
    shape = dict(heads=teacher.heads, kv_heads=teacher.kv_heads, units=teacher.units, width=teacher.width)
    shape["layers"] = len(teacher.layers)
    for method in for_heads:
        student = contest.student(method, shape | {"heads": teacher.heads // 2, "kv_heads": teacher.kv_heads // 2}, 0)
        assert difference(teacher, student, batch) > TOLERANCE, method
        assert student.cache_bytes * 2 == teacher.cache_bytes, method
    for method in for_shapes:
        for change in ({"units": teacher.units // 2}, {"layers": 3}, {"width": teacher.width // 2}):
            student = contest.student(method, shape | change, 0)
            found = {"units": student.units, "layers": len(student.layers), "width": student.width}
            if method != "slice" or "width" in change:
                assert change.items() <= found.items(), f"{method}: {found}, not {change}"
            assert found["layers"] == student.config["num_hidden_layers"]


def text():
    """Every pair of neighbours of a document is learned once, whatever the layout, and no document sees another."""
    import text

    documents = [list(range(1, 8)), [11, 12, 13], [21], [31, 32, 33, 34]]
    rows = text.whole(documents, 4)
    # Of the first four tokens and three, the single one fills the second window; the others have one each.
    assert rows.ids.tolist() == [[1, 2, 3, 4], [5, 6, 7, 21], [11, 12, 13, 0], [31, 32, 33, 34]], rows.ids
    assert rows.positions[1].tolist() == [0, 1, 2, 0] and rows.segments[1].tolist() == [1, 1, 1, 2]
    assert rows.counts.tolist()[0] == [True] * 4 and rows.counts.tolist()[1] == [True, True, False, False]
    assert rows.counts.sum() == sum(len(document) - 1 for document in documents)
    assert text.cut(documents, 5).ids.tolist() == [[1, 2, 3, 4, 5], [6, 7, 11, 12, 13], [21, 31, 32, 33, 34]]
    assert text.cut(documents, 5).positions[1].tolist() == [0, 1, 0, 1, 2]
    mask = rows.batch(torch.tensor([1]))["mask"][0, 0] == 0
    assert mask.tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 1]]


def loss():
    """Loss and gradient are those of PyTorch's own."""
    from training import Kl

    ours = torch.randn(7, 11, dtype=torch.float64, requires_grad=True)
    theirs = torch.randn(7, 11, dtype=torch.float64)
    expected = F.kl_div(ours.log_softmax(-1), theirs.log_softmax(-1), log_target=True, reduction="batchmean")
    gradient = torch.autograd.grad(expected, ours)[0]
    found = Kl.apply(ours, theirs)
    assert torch.allclose(found, expected) and torch.allclose(torch.autograd.grad(found, ours)[0], gradient)


def files(contest):
    """What is written, transformers computes as this program does."""
    from training import Judge, by_transformers

    shape = dict(heads=contest.teacher.heads // 2, kv_heads=contest.teacher.kv_heads // 2, units=contest.teacher.units)
    shape |= dict(layers=len(contest.teacher.layers), width=contest.teacher.width)
    judge = Judge(contest.teacher, contest.alone.batches(0, len(contest.alone), 50))
    changes = [("pick", {}), ("slice", {"heads": contest.teacher.heads, "kv_heads": contest.teacher.kv_heads, "width": 48})]
    for method, change in changes:
        student = contest.student(method, shape | change, 0)
        with tempfile.TemporaryDirectory() as folder:
            student.save(folder, contest.folder)
            theirs = by_transformers(contest.folder, folder, contest.alone)
        ours = judge(student)[0]
        assert abs(theirs - ours) < 1e-4 * ours, f"{method}: transformers has {theirs}, this program {ours}"


def run(contest, for_heads, for_shapes):
    """0 if all is right. The methods are those of `rivals.py`, for other heads and for other shapes."""
    batch = contest.windows.batch(torch.arange(4))
    checks = {
        "a student that is not smaller is its teacher": lambda: unchanged(contest, batch),
        "a smaller one has its shape": lambda: smaller(contest, batch, for_heads, for_shapes),
        "text": text,
        "loss": loss,
        "files": lambda: files(contest),
    }
    failed = 0
    for name, check in checks.items():
        try:
            check()
            print(f"right: {name}")
        except Exception:
            failed += 1
            print(f"wrong: {name}\n{traceback.format_exc()}")
    return min(failed, 1)
