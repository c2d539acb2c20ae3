"""What the trained experiments share: variants × learning rates × seeds -> rows, a table, a figure.

A question is a file beside this one that says what it varies:

    python -m experiments.ranks            runs what results/ranks.csv lacks, then writes the table
    python -m experiments.ranks --quick    the same with a few steps a run, for a look, in out/quick

A row of the CSV begins with what makes the run again, `python train.py FLAGS`, or, where it begins
with -m, `python FLAGS`. A run that was stopped is taken up again.
"""
import argparse
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import curves
from data.files import InputError, replace_file, write_csv
from experiments import compare, sweep

RESULTS = Path(__file__).with_name("results")
FIGURES = Path(__file__).with_name("figures")


@dataclass
class Variant:
    """One of the things compared: a method, the learning rates to try, more flags of train.py."""
    method: str
    rates: tuple
    flags: str = ""
    own: str = ""  # flags of experiments.variant
    data: str = "math"

    def run(self, lr, seed, more=""):
        """The flags of one run, in full, since defaults may change."""
        given = shlex.split(f"{self.flags} {more}")
        flags = compare.flags_of(given, self.data, self.method, lr, seed)
        return f"-m experiments.variant {self.own} {flags}" if self.own else flags


def plan(variants, seeds, more=""):
    """{name: Variant} -> {the flags of a run: (name, learning rate, seed)}."""
    return {variant.run(lr, seed, more): (name, lr, seed) for seed in range(seeds)
            for name, variant in variants.items() for lr in variant.rates}


def results(every, rows, metric=None):
    """The rows of a plan that are there -> dicts of numbers, for experiments.compare's functions.

    `metric` is "loss" to compare by the loss of the completions instead of the task's own.
    """
    mine = {flags: rows[flags] for flags in every if flags in rows}
    metrics = {row["metric"] for row in mine.values()} - {"diverged"}
    if not metrics:
        raise InputError("every run diverged, or none was made")
    found = []
    for flags, row in mine.items():
        name, lr, seed = every[flags]
        outcome = compare.outcome(row, metric or min(metrics))
        found.append({"method": name, "lr": lr, "seed": seed, **outcome})
    return found


def stored(name, variants, seeds=3, metric=None):
    """The results of a question as they stand in its CSV."""
    rows = {row["flags"]: row for row in sweep.read(RESULTS / f"{name}.csv")}
    return results(plan(variants, seeds), rows, metric)


def reuse(every, table):
    """Copies into a table what other tables have of a plan's runs."""
    rows = {row["flags"]: row for row in sweep.read(table)}
    for other in sorted(RESULTS.rglob("*.csv")):
        for row in sweep.read(other):
            if row.get("flags") in every:
                rows.setdefault(row["flags"], row)
    write_csv(table, sweep.COLUMNS, rows.values())


def write_figure(figure, name):
    curves.write(figure, FIGURES / f"{name}.svg")


def ask(name, variants, seeds=3, metric=None, text=None, draw=None):
    """A question's command: the runs that are missing, then its table, `text(found)` if given, in
    results/<name>.md, and its figure, `draw(found)`, in figures/<name>.svg."""
    parser = argparse.ArgumentParser(prog=f"python -m experiments.{name}")
    parser.add_argument("--quick", action="store_true", help="four steps a run, for a look")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs side by side")
    parser.add_argument("--seeds", type=int, default=seeds, help=f"how many, from 0 ({seeds})")
    args = parser.parse_args()
    if args.quick:
        variants = {key: Variant(v.method, v.rates[:1], v.flags, v.own, v.data)
                    for key, v in variants.items()}
        every, folder = plan(variants, 1, "--steps 4 --eval_interval 2"), Path("out/quick")
    else:
        every, folder = plan(variants, args.seeds), RESULTS
    try:
        table = folder / f"{name}.csv"
        reuse(every, table)
        found = results(every, sweep.sweep(list(every), table, args.jobs), metric)
        told = text(found) if text else compare.table(found, list(variants))
        with replace_file(folder / f"{name}.md") as file:
            file.write(f"`python -m experiments.{name}`\n\n{told}\n".encode())
        print(f"\n{told}")
        if draw and curves.available():
            curves.write(draw(found), (folder if args.quick else FIGURES) / f"{name}.svg")
    except (InputError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        sys.exit("stopped: the same command goes on")
