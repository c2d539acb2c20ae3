"""What the trained experiments share: variants × learning rates × seeds -> rows, a table, a figure.

A question is a file beside this one that says what it varies:

    python -m experiments.ranks            runs what results/ranks.csv lacks, and puts the table
                                           into details.md
    python -m experiments.ranks --quick    the same with a few steps a run, for a look, in out/quick

A row of the CSV begins with what makes the run again, `python train.py FLAGS`, or, where it begins
with -m, `python FLAGS`. A run that was stopped is taken up again. The first seed tries all learning
rates and the others the best of them, or all, where the question is about the rates: so two seeds
of three have not chosen it. Where other questions have left more runs, all seeds choose.
"""
import argparse
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable

import curves
from data.files import InputError, replace_file, write_csv
from experiments import compare, sweep
from runs import print_anywhere

RESULTS = Path(__file__).with_name("results")
FIGURES = Path(__file__).with_name("figures")
DETAILS = Path(__file__).with_name("details.md")
QUICK = "--steps 4 --eval_interval 2"
LOOK = Path("out/quick")
ON_CODE = "--steps 300 --eval_interval 50 --batch_size 8"  # as many tokens a step as 32 sums


def flag(name, value, default):
    """A flag, left out at its default: a stored row is known by its flags."""
    return "" if value == default else f"--{name} {value}"


@dataclass
class Variant:
    """One of the things compared: a method, the learning rates to try, more flags of train.py."""
    method: str
    rates: tuple
    flags: str = ""
    module: str = ""  # what runs in place of train.py, with its own flags: experiments.variant ...
    data: str = "math"
    always: tuple = ()  # rates that every seed tries, best or not

    def run(self, lr, seed, more=""):
        """The flags of one run; steps, batch, betas, evaluations in full: defaults may change."""
        given = shlex.split(f"{self.flags} {more}")
        flags = compare.flags_of(given, self.data, self.method, lr, seed)
        return f"-m {self.module} {flags}" if self.module else flags


@dataclass
class Question:
    """Variants by their names; text(found) makes the table, draw(found) the figure, from the dicts
    of numbers that `results` returns."""
    name: str
    variants: dict
    every_rate: bool = False  # every seed tries them all, not the first alone
    metric: str = None  # "loss" compares by the completions' loss instead of the task's own metric
    text: Callable = None
    draw: Callable = None
    page: Path = DETAILS  # the text that has a place for the table

    def plan(self, seeds=3, more=""):
        """{the flags of a run: (variant, learning rate, seed)}, one seed before the next."""
        return {variant.run(lr, seed, more): (name, lr, seed) for seed in range(seeds)
                for name, variant in self.variants.items() for lr in variant.rates}

    def later(self, every, rows):
        """The flags of a plan that are to run after its first seed's rows are there."""
        if self.every_rate:
            return list(every)
        first = [result for result in self.results(every, rows) if result["seed"] == 0]
        best = {name: compare.best_rate(compare.at_rates(first, name)) for name in self.variants}
        return [flags for flags, (name, lr, _) in every.items()
                if lr in (best[name], *self.variants[name].always)]

    def results(self, every, rows):
        """The rows of a plan that are there -> dicts of numbers, for experiments.compare's use."""
        mine = {flags: rows[flags] for flags in every if flags in rows}
        metrics = {every[flags][0]: row["metric"] for flags, row in mine.items()
                   if row["metric"] != "diverged"}
        if not metrics:
            raise InputError("every run diverged, or none was made")
        found = []
        for flags, row in mine.items():
            variant, lr, seed = every[flags]
            metric = self.metric or metrics.get(variant, min(metrics.values()))
            found.append({"method": variant, "lr": lr, "seed": seed,
                          **compare.outcome(row, metric)})
        return found

    def stored(self, seeds=3):
        """The results as they stand in the CSV."""
        rows = {row["flags"]: row for row in sweep.read(RESULTS / f"{self.name}.csv")}
        return self.results(self.plan(seeds), rows)

    def table(self, found):
        """The table in Markdown, or one for each of the tasks' metrics."""
        if self.text:
            return self.text(found).strip()
        of_metric = {}
        for result in found:
            of_metric.setdefault(result["metric"], []).append(result)
        return "\n\n".join(compare.table(results, list(self.variants), sizes=False)
                           for results in of_metric.values())

    def quick(self):
        """The same with one learning rate each, and without what has to be downloaded."""
        variants = {name: replace(variant, rates=(variant.always or variant.rates)[:1])
                    for name, variant in self.variants.items() if variant.data != "shakespeare"}
        return replace(self, variants=variants)


def reuse(every, table):
    """Copies into a table what the other tables have of a plan's runs."""
    with sweep.locked(table):
        rows = {row["flags"]: row for row in sweep.read(table)}
        for other in sorted(RESULTS.rglob("*.csv")):
            for row in sweep.read(other):
                if row.get("flags") in every:
                    rows.setdefault(row["flags"], row)
        write_csv(table, sweep.COLUMNS, rows.values())


def place_of(name, text):
    """A page's place for a table, between two comments -> what is before it, in it, and after."""
    before, begin, rest = text.partition(f"<!-- {name} -->\n")
    table, end, after = rest.partition(f"<!-- end of {name} -->\n")
    if not end:
        raise InputError(f"no place for the table: the page lacks <!-- {name} --> and its end")
    return before + begin, table.strip(), end + after


def put(table, name, page):
    before, _, after = place_of(name, page.read_text(encoding="utf-8"))
    with replace_file(page) as file:
        file.write(f"{before}\n{table}\n\n{after}".encode())


def parse(asked):
    """The command line of a question or a measurement -> its parser, args."""
    parser = argparse.ArgumentParser(prog=f"python -m experiments.{asked.name}")
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: {message}\n")
    add = parser.add_argument
    add("--quick", action="store_true", help="four steps a run and one seed, for a look")
    add("--stored", action="store_true", help="no runs: the table and the figure of those there")
    sweep.add_jobs(parser)
    print_anywhere()
    return parser, parser.parse_args()


def publish(asked, found, quick):
    """Prints a table, puts it into its page, draws its figure."""
    table = asked.table(found)
    print(f"\n{table}\n")
    if not quick:
        put(table, asked.name, asked.page)
    if asked.draw and curves.available():
        curves.write(asked.draw(found), (LOOK if quick else FIGURES) / f"{asked.name}.svg")


def ask(question):
    """A question's command: the runs that are missing, its table, its figure."""
    parser, args = parse(question)
    folder, every = RESULTS, question.plan()
    if args.quick:
        folder, question = LOOK, question.quick()
        every = question.plan(1, QUICK)
    try:
        if not args.quick:  # what is wrong with the page is told before hours of runs
            place_of(question.name, question.page.read_text(encoding="utf-8"))
        path = folder / f"{question.name}.csv"
        reuse(every, path)
        if not args.stored:
            first = [flags for flags, (_, _, seed) in every.items() if seed == 0]
            rows = sweep.sweep(first, path, args.jobs)
            sweep.sweep(question.later(every, rows), path, args.jobs)
        found = question.results(every, {row["flags"]: row for row in sweep.read(path)})
        publish(question, found, args.quick)
    except (InputError, OSError) as error:
        parser.error(error)
    except KeyboardInterrupt:
        sys.exit("stopped: the same command goes on")
