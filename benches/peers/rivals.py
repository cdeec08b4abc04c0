"""Students by other methods than burn-lti's, trained and judged as burn-lti's are.

    python rivals.py recipes/stories260k.toml --method aligned pick --heads 8 --kv-heads 2 --train all

Teacher, text, steps and tokens are those of a recipe, and so is the shape unless a flag says another. A line of JSON
is printed for each student: before training (`"train": "none"`), and for each rate that it was trained at. With
`--results` lines are kept in a file, and what has one is not made again. `heads.py`, `shapes.py` and `maxtext.py` have
the methods; two more are

| | |
|---|---|
| `start` | what `burn-lti start` makes of the same recipe (`--program`), trained without maps by the optimizer of the rivals |
| `folder` | the student in `--folder`, by whatever method |

Rates are tried upwards until one is worse, with seed 0; another seed takes the best of them. Which is best, held-out
windows say that no figure is of. With `--out` the folder gets a `summary.json` and a `metrics.jsonl` as a run of
`burn-lti distill` leaves them, of the best rate; with `--save` a folder gets the student. `--self-check` sees that each method leaves a
teacher as it is where nothing is smaller.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import tomllib

from common import threads

RATES = [1e-3, 3e-3, 1e-2]
FOR_HEADS = ["mean", "aligned", "pick", "grouped", "random", "low-rank", "maxtext"]
FOR_SHAPES = ["pick", "slice", "random"]
METHODS = sorted({*FOR_HEADS, *FOR_SHAPES, "start", "folder"})
# What `lti.train` of a recipe trains.
TRAINS = {"all": "all", "projections": "attention"}
# Tokens to learn about activations.
CALIBRATION = 32768
# Sequences to choose among candidates, to report, to choose a rate.
CANDIDATES, REPORTED, CHOOSING = 64, 200, 60


def recipe_of(path, overrides):
    """The recipe with `KEY=VALUE`s laid over it; values that are no TOML are strings, as burn-lti takes them."""
    with open(path, "rb") as file:
        recipe = tomllib.load(file)
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise SystemExit(f"--set {override}: it takes KEY=VALUE")
        try:
            value = tomllib.loads(f"x = {value}")["x"]
        except tomllib.TOMLDecodeError:
            pass
        *tables, name = key.split(".")
        table = recipe
        for part in tables:
            table = table.setdefault(part, {})
        table[name] = value
    folder = os.path.dirname(path)
    recipe["teacher"]["path"] = os.path.join(folder, recipe["teacher"]["path"])
    for name in ("train", "valid"):
        recipe["data"][name] = [os.path.join(folder, file) for file in recipe["data"][name]]
    return recipe


def shape_of(recipe, config):
    """The student's geometry: what a recipe leaves out is the teacher's."""
    student = recipe.get("student", {})
    known = {"heads", "kv_heads", "intermediate_size", "layers", "hidden_size"}
    if unknown := set(student) - known:
        raise SystemExit(f"student.{min(unknown)}: no rival can be of that shape; they know {sorted(known)}")
    return {
        "heads": student.get("heads", config["num_attention_heads"]),
        "kv_heads": student.get("kv_heads", config["num_key_value_heads"]),
        "units": student.get("intermediate_size", config["intermediate_size"]),
        "layers": student.get("layers", config["num_hidden_layers"]),
        "width": student.get("hidden_size", config["hidden_size"]),
    }


class Lines:
    """Results, a line of JSON each, in a file where one is named."""

    def __init__(self, path):
        self.path = path
        self.lines = []
        if path and os.path.exists(path):
            with open(path) as file:
                self.lines = [json.loads(line) for line in file]

    def of(self, **what):
        """Those with these values, the newest first."""
        return [line for line in reversed(self.lines) if all(line.get(key) == value for key, value in what.items())]

    def add(self, line):
        print(json.dumps(line), flush=True)
        self.lines.append(line)
        if self.path:
            os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
            with open(self.path, "a") as file:
                file.write(json.dumps(line) + "\n")


class Contest:
    """A teacher, its text, and what is known of it: made when it is first asked for."""

    def __init__(self, recipe, arguments):
        import torch

        torch.set_num_threads(threads())
        import text
        from llama import Llama
        from heads import Seen
        from training import Judge

        self.recipe, self.arguments = recipe, arguments
        self.folder = recipe["teacher"]["path"]
        self.teacher = Llama.load(self.folder)
        length = recipe["train"].get("seq_len", 128)
        load = lambda name: text.load(recipe["data"][name], self.folder, self.teacher.config, length, arguments.layout)
        self.windows, _ = load("train")
        held_out, documents = load("valid")
        self.judge = Judge(self.teacher, held_out.batches(0, REPORTED, 50))
        self.chooser = Judge(self.teacher, held_out.batches(REPORTED, REPORTED + CHOOSING, CHOOSING))
        self.alone = text.one_by_one(documents[:REPORTED], length)
        self.alone_judge = None
        candidates = Judge(self.teacher, self.windows.batches(0, CANDIDATES, CANDIDATES))
        self.seen = Seen(self.teacher, self.windows.batches(0, CALIBRATION // length, 64), candidates)
        self.lessons = {}

    def student(self, method, shape, seed):
        import heads
        import maxtext
        import shapes
        from llama import Llama

        if method == "folder":
            return Llama.load(self.arguments.folder)
        if method == "start":
            return self.start_of_ours(seed)
        whole = self.teacher
        other_heads = (shape["heads"], shape["kv_heads"]) != (whole.heads, whole.kv_heads)
        layers = shape["layers"] if isinstance(shape["layers"], int) else len(shape["layers"])
        other_shape = (shape["units"], layers, shape["width"]) != (whole.units, len(whole.layers), whole.width)
        if shape["heads"] % shape["kv_heads"]:
            raise SystemExit(f"{shape['kv_heads']} key/value heads do not divide {shape['heads']} query heads")
        if other_heads and method not in FOR_HEADS:
            raise SystemExit(f"{method} makes no student with fewer heads; these do: {', '.join(FOR_HEADS)}")
        if other_shape and method not in FOR_SHAPES:
            raise SystemExit(f"{method} makes no student of another shape; these do: {', '.join(FOR_SHAPES)}")
        student = whole
        if other_heads or method not in FOR_SHAPES:
            make = maxtext.maxtext if method == "maxtext" else heads.METHODS[method]
            student = make(self.seen, shape["heads"], shape["kv_heads"], seed)
        if method not in FOR_SHAPES:
            return student
        return shapes.reshaped(self.seen, student, method, shape["units"], shape["layers"], shape["width"], seed)

    def start_of_ours(self, seed):
        from llama import Llama

        arguments = self.arguments
        out = tempfile.mkdtemp(dir=arguments.scratch)
        sets = [f"--set={override}" for override in [*arguments.overrides, f"train.seed={seed}"]]
        command = [arguments.program, "start", arguments.recipe, "--out", out, "--overwrite", *sets]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return Llama.load(os.path.join(out, "student"))

    def lessons_of(self, seed):
        from training import Lessons

        if seed not in self.lessons:
            train = self.recipe["train"]
            self.lessons[seed] = Lessons(self.teacher, self.windows, train["steps"], train.get("batch_size", 16), seed)
        return self.lessons[seed]

    def figures(self, student):
        student = collapsed(student)
        kl, same, tokens = self.judge(student)
        return {
            "kl": kl,
            "top1": same,
            "kl_to_choose": self.chooser(student)[0],
            "tokens_judged": tokens,
            "parameters": sum(parameter.numel() for parameter in student.parameters()),
            "cache_bytes": student.cache_bytes,
            "ordinary": student.is_ordinary,
            "kl_by_transformers": self.by_transformers(student),
        }

    def by_transformers(self, student):
        """KL over documents alone; of what is no ordinary Llama by what this program computes."""
        from training import Judge, by_transformers

        if student.is_ordinary:
            with tempfile.TemporaryDirectory() as folder:
                student.save(folder, self.folder)
                return by_transformers(self.folder, folder, self.alone)
        if self.alone_judge is None:
            self.alone_judge = Judge(self.teacher, self.alone.batches(0, len(self.alone), 25))
        return self.alone_judge(student)[0]


class Run:
    """A method, a shape and a seed, with their lines."""

    def __init__(self, lines, contest, recipe, arguments, config, method):
        self.lines, self.contest, self.arguments, self.method = lines, contest, arguments, method
        self.seed = recipe["train"].get("seed", 0)
        if method == "folder":
            with open(os.path.join(arguments.folder, "config.json")) as file:
                recipe, config = recipe | {"student": {}}, json.load(file)
        self.shape = shape_of(recipe, config)
        train = recipe["train"]
        length, batch_size = train.get("seq_len", 128), train.get("batch_size", 16)
        trains = recipe.get("lti", {}).get("train", "all")
        if trains not in TRAINS:
            raise SystemExit(f"lti.train = {trains!r}: rivals have no maps; they train {', '.join(TRAINS)}")
        self.train = arguments.train or TRAINS[trains]
        self.what = {
            "teacher": os.path.basename(os.path.normpath(recipe["teacher"]["path"])),
            "method": method,
            "shape": self.shape,
            "layout": arguments.layout,
        }
        if method == "folder":
            self.what["folder"] = arguments.folder
        if method == "start":
            self.what["calibration"] = recipe.get("calibration", {})
        self.budget = {"steps": train["steps"], "tokens_a_step": length * batch_size}
        self.students = {}

    def student(self, seed):
        """Before training, and the seconds that it took; made once a seed."""
        from training import timed

        if seed not in self.students:
            self.students[seed] = timed(self.contest().student, self.method, self.shape, seed)
        return self.students[seed]

    def untrained(self):
        """The line of the student before training."""
        key = self.what | {"train": "none", "seed": self.seed}
        if found := self.lines.of(**key):
            return found[0]
        contest = self.contest()
        student, seconds = self.student(self.seed)
        line = key | contest.figures(student) | {"note": getattr(student, "note", None), "seconds": round(seconds, 1)}
        self.lines.add(line)
        return line

    def trained(self, rate, seed):
        """The line of the student trained at a rate."""
        key = self.what | self.budget | {"train": self.train, "rate": rate, "seed": seed}
        if found := self.lines.of(**key):
            return found[0]
        student, lessons, seconds = self.train_at(rate, seed)
        line = key | self.contest().figures(student) | {"tokens": lessons.tokens, "seconds": round(seconds, 1)}
        self.lines.add(line)
        return line

    def train_at(self, rate, seed):
        from training import timed, train

        lessons = self.contest().lessons_of(seed)
        student, seconds = timed(train, self.student(seed)[0], lessons, rate, self.train)
        return student, lessons, seconds

    def run(self):
        before = self.untrained()
        after = before
        rates = {}
        if self.train != "none":
            for rate in sorted(self.arguments.rates):
                rates[rate] = self.trained(rate, 0)["kl_to_choose"]
                if rates[rate] > min(rates.values()):
                    break
            after = self.trained(min(rates, key=rates.get), self.seed)
        if self.arguments.out:
            self.report(before, after, rates)
        if self.arguments.save:
            student = self.train_at(after["rate"], self.seed)[0] if rates else self.student(self.seed)[0]
            folder = os.path.join(self.arguments.save, self.method)
            if not student.is_ordinary:
                raise SystemExit(f"{self.method}: no ordinary Llama, and so no folder that others can read")
            collapsed(student).save(folder, self.contest().folder)

    def report(self, before, after, rates):
        """What a run of burn-lti leaves, of the same figures."""
        summary = {
            "kl_start": before["kl"],
            "kl_end": after["kl"],
            "kl_start_by_transformers": before["kl_by_transformers"],
            "kl_end_by_transformers": after["kl_by_transformers"],
            "top1_agreement": after["top1"],
            "eval_tokens": after["tokens_judged"],
            "tokens": after.get("tokens", 0),
            "rate": after.get("rate"),
            "kl_by_rate": {str(rate): kl for rate, kl in rates.items()},
            "parameters": after["parameters"],
            "cache_bytes": after["cache_bytes"],
            "ordinary": after["ordinary"],
            "note": before["note"],
            "seconds": after["seconds"],
        }
        os.makedirs(self.arguments.out, exist_ok=True)
        with open(os.path.join(self.arguments.out, "summary.json"), "w") as file:
            json.dump(summary, file, indent=2)
        with open(os.path.join(self.arguments.out, "metrics.jsonl"), "w") as file:
            line = {"step": self.budget["steps"], "eval": {"kl": after["kl"]}}
            file.write(json.dumps(line) + "\n")


def collapsed(student):
    """What maps stand for, where a student has them."""
    return student.collapsed() if hasattr(student, "collapsed") else student


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="of burn-lti: the teacher, the text, the steps")
    parser.add_argument("--method", nargs="+", choices=METHODS, metavar="METHOD", help=", ".join(METHODS))
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="of the recipe")
    for flag, key in (
        ("--heads", "heads"),
        ("--kv-heads", "kv_heads"),
        ("--intermediate", "intermediate_size"),
        ("--layers", "layers"),
        ("--width", "hidden_size"),
    ):
        parser.add_argument(flag, type=int, help=f"the same as --set student.{key}=N")
    parser.add_argument("--seed", type=int, help="the same as --set train.seed=N")
    parser.add_argument("--train", choices=["none", "attention", "all"], help="what trains, if not as `lti.train` says")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--layout", choices=["whole", "cut", "joined"], default="whole", help="of documents in windows")
    parser.add_argument("--results", help="a file of lines of JSON, which grows")
    parser.add_argument("--out", help="a folder for summary and metrics")
    parser.add_argument("--save", help="a folder for the students, each in a Hugging Face folder named as its method")
    parser.add_argument("--folder", help="the student of `--method folder`")
    parser.add_argument("--program", help="a burn-lti, for `--method start`")
    parser.add_argument("--self-check", action="store_true", help="of all methods, on the recipe's teacher")
    arguments = parser.parse_args()
    flags = {
        "student.heads": arguments.heads,
        "student.kv_heads": arguments.kv_heads,
        "student.intermediate_size": arguments.intermediate,
        "student.layers": arguments.layers,
        "student.hidden_size": arguments.width,
        "train.seed": arguments.seed,
    }
    arguments.overrides += [f"{key}={value}" for key, value in flags.items() if value is not None]
    methods = arguments.method or []
    if not methods and not arguments.self_check:
        parser.error("--method or --self-check")
    if "folder" in methods and not arguments.folder:
        parser.error("--method folder: --folder names the student")
    if "start" in methods and not arguments.program:
        parser.error("--method start: --program names a burn-lti")
    return arguments


def main():
    arguments = parse()
    recipe = recipe_of(arguments.recipe, arguments.overrides)
    with open(os.path.join(recipe["teacher"]["path"], "config.json")) as file:
        config = json.load(file)
    lines = Lines(arguments.results)
    contest = functools.cache(lambda: Contest(recipe, arguments))
    if arguments.self_check:
        import self_check

        sys.exit(self_check.run(contest(), FOR_HEADS, FOR_SHAPES))
    with tempfile.TemporaryDirectory() as arguments.scratch:
        for method in arguments.method:
            Run(lines, contest, recipe, arguments, config, method).run()


if __name__ == "__main__":
    main()
