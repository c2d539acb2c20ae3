"""What a question is: variants × learning rates × seeds, and the table that answers it.

The questions stand in experiments/questions/, `python -m experiments.ask NAME` answers one.
The first seed tries all learning rates. The other seeds try the best of them, or all of them if the
question is about the rates.
"""
import math
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable

from data.files import InputError, read_csv, replace_file
from experiments import compare, sweep

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGES = (HERE / "evidence.md", HERE.parent / "exercises" / "README.md")  # with places for tables
QUICK = "--steps 2 --eval_interval 2"
ON_CODE = "--steps 300 --eval_interval 50 --batch_size 8"  # as many tokens a step as 32 sums
DATA = {  # name: what train.py takes, and more flags
    "math": ("math", ""),
    "code": ("data/code.txt", "--val_data data/code_val.txt"),
    "pairs": ("data/e2e_sample.jsonl", ""),
    "plays": ("data/shakespeare.txt", ""),
}
PREPARED = {"code": "code", "plays": "shakespeare"}  # what python -m data.prepare makes


def flag(name, value, default):
    """A flag, or nothing at its default, since stored rows are found by their flags."""
    return "" if value == default else f"--{name} {value}"


@dataclass
class Variant:
    """One of the things compared.

    rates    the learning rates of the first seed
    flags    more flags of train.py
    module   what runs in train.py's place, with its own flags: "experiments.variant --freeze A"
    data     a key of DATA
    always   rates that the other seeds try too, beside the best
    """
    method: str
    rates: tuple
    flags: str = ""
    module: str = ""
    data: str = "math"
    always: tuple = ()

    def run(self, lr, seed, more=""):
        """The flags of one run."""
        data, of_data = DATA[self.data]
        given = shlex.split(f"{of_data} {self.flags} {more}")
        flags = compare.flags_of(given, data, self.method, lr, seed)
        return f"-m {self.module} {flags}" if self.module else flags


@dataclass
class Question:
    """Variants by name, and what is made of their results.

    text         a function of the results (dicts of numbers) -> Markdown; or the first header of
                 the table of all variants at their best rates
    every_rate   every seed tries all rates
    metric       "loss" compares by the held-out loss, whatever the task's metric is
    choose       a function of {lr: results} -> the best rate
    draw         a function of the results -> a figure, or None
    """
    name: str
    variants: dict
    text: Callable | str
    every_rate: bool = False
    metric: str = None
    choose: Callable = compare.best_rate
    draw: Callable = None

    def plan(self, seeds=3, more=""):
        """{the flags of a run: (variant, learning rate, seed)}, one seed before the next."""
        return {variant.run(lr, seed, more): (name, lr, seed) for seed in range(seeds)
                for name, variant in self.variants.items() for lr in variant.rates}

    def later(self, plan, rows):
        """The runs that are to follow once the rows of the first seed are there."""
        if self.every_rate:
            return list(plan)
        first = [result for result in self.results(plan, rows) if result["seed"] == 0]
        best = {name: self.choose(compare.at_rates(first, name)) for name in self.variants}
        return [flags for flags, (name, lr, _) in plan.items()
                if lr in (best[name], *self.variants[name].always)]

    def results(self, plan, rows):
        """The stored rows of a plan -> dicts of numbers; "method" is the variant's name."""
        mine = {flags: rows[flags] for flags in plan if flags in rows}
        metrics = {plan[flags][0]: row["metric"] for flags, row in mine.items()
                   if row["metric"] != "diverged"}
        if not metrics:
            raise InputError("every run diverged, or none was made")
        found = []
        for flags, row in mine.items():
            name, lr, seed = plan[flags]
            metric = self.metric or metrics.get(name, min(metrics.values()))
            numbers = compare.numbers_of(row, metric)
            found.append({"method": name, "lr": lr, "seed": seed, **numbers})
        return found

    def stored(self):
        return self.results(self.plan(), sweep.read(*RESULTS.rglob("runs.csv")))

    def table(self, found):
        """The answer in Markdown; a table for each task, where the variants name it before a colon.
        """
        if callable(self.text):
            return self.text(found)
        tables = {}
        for name in self.variants:
            tables.setdefault(name.rpartition(": ")[0] or self.text, []).append(name)
        return "\n\n".join(compare.best_table(found, names, first, choose=self.choose)
                           for first, names in tables.items())

    def quick(self):
        """The same with one learning rate each, and without what has to be downloaded."""
        variants = {name: replace(variant, rates=tuple(variant.always or variant.rates)[:1])
                    for name, variant in self.variants.items() if variant.data != "plays"}
        return replace(self, variants=variants)


@dataclass
class Measurement:
    """Something measured on trained models, which are kept in out/trained.

    runs         {key: (a variant with one rate, seed, more flags)}
    rows         rows({key: a run's directory}) yields the rows of a CSV
    text, draw   functions of these rows, whose values are strings
    """
    name: str
    runs: dict
    rows: Callable
    text: Callable
    draw: Callable = None

    def table(self, rows):
        return self.text(rows)

    def stored(self):
        path = RESULTS / f"{self.name}.csv"
        if not path.exists():
            raise InputError(f"{path} is not there: without --stored it is made")
        return read_csv(path)


# ==== Tables ======================================================================================


def steps_to(points, level, metric):
    """The first step of (step, value) at which a level was reached; inf if none is."""
    return next((step for step, value in points if compare.reached(value, level, metric)), math.inf)


def groups(rows, *keys):
    """Rows by their values in these columns -> {(values): [rows]}."""
    found = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found


def place_of(name, page):
    """A page's place for a table, between two comments -> the text before, in and after it.

    None if the page has no such place.
    """
    before, begin, rest = page.partition(f"<!-- {name} -->\n")
    table, end, after = rest.partition(f"<!-- end of {name} -->\n")
    return (before + begin, table.strip(), end + after) if end else None


def put(name, table):
    """Writes a table into its place."""
    for page in PAGES:
        place = place_of(name, page.read_text(encoding="utf-8"))
        if place is not None:
            before, _, after = place
            with replace_file(page) as file:
                file.write(f"{before}\n{table}\n\n{after}".encode())
