"""What the measurements of trained weights share: models, kept in out/trained -> rows, a table.

    python -m experiments.perturbation            trains what is missing, measures, and puts the
                                                  table into details.md
    python -m experiments.perturbation --quick    four steps a run, for a look, in out/quick
    python -m experiments.perturbation --stored   no runs: the table of the stored rows
"""
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from data.files import InputError, write_csv
from experiments import question, sweep
from lora import lora_layers
from runs import load_base, load_run, model_of

FULL, LORA = question.Variant("full", (3e-3,)), question.Variant("lora", (5e-3,))
SEEDS = range(3)


@dataclass
class Measurement:
    """runs is {key: (a variant of one rate, seed, more flags)}; rows({key: a run's directory})
    makes the CSV's rows; text(rows) the table, and draw(rows) the figure, from its strings."""
    name: str
    runs: dict
    rows: Callable
    text: Callable
    draw: Callable = None
    page: Path = question.DETAILS

    def stored(self):
        return sweep.read(question.RESULTS / f"{self.name}.csv")

    def table(self, rows):
        return self.text(rows).strip()


def train(variant, seed, more, folder):
    """The directory of a run, made if it is not there."""
    flags = variant.run(variant.rates[0], seed, more)
    directory = folder / sweep.short(flags)
    if not (directory / "result.json").exists():
        print(f"python train.py {flags}", flush=True)
        if sweep.run(flags, directory, 1)["metric"] == "diverged":
            raise InputError(f"python train.py {flags} diverged")
    return directory


def model(directory):
    """The model of a run, to ask it."""
    return model_of(load_run(directory)[1], load_base()).eval()


def deltas(directory):
    """W0 and ΔW of each adapted layer -> {name: (W0, ΔW)}, float64."""
    base = {name: W.double() for name, W in load_base().named_parameters()}
    trained = model(directory)
    if lora_layers(trained):
        return {name: (base[f"{name}.weight"], layer.delta().detach().double())
                for name, layer in lora_layers(trained).items()}
    return {name.removesuffix(".weight"): (W, trained.get_parameter(name).detach().double() - W)
            for name, W in base.items() if W.ndim == 2 and ".h." in name}


def groups(rows, *keys):
    """Rows that are alike in these columns -> {(their values): [rows]}."""
    found = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found


def spread(rows, name, form="{:.0f}"):
    """The median of a column, and its range."""
    values = [float(row[name]) for row in rows]
    median, least, most = map(form.format, (statistics.median(values), min(values), max(values)))
    return f"{median} ({least} to {most})"


def ask(measurement):
    """A measurement's command: the runs that are missing, the rows, the table, the figure."""
    parser, args = question.parse(measurement)
    results = question.LOOK if args.quick else question.RESULTS
    try:
        if not args.stored:
            folder = question.LOOK / "trained" if args.quick else Path("out/trained")
            quicker = question.QUICK if args.quick else ""  # the last of two flags counts
            runs = {key: (variant, seed, f"{more} {quicker}")
                    for key, (variant, seed, more) in measurement.runs.items()}
            with ThreadPoolExecutor(args.jobs) as pool:
                made = pool.map(lambda run: train(*run, folder), runs.values())
                rows = list(measurement.rows(dict(zip(runs, made))))
            write_csv(results / f"{measurement.name}.csv", list(rows[0]), rows)
        rows = sweep.read(results / f"{measurement.name}.csv")
        if not rows:
            raise InputError(f"{results / measurement.name}.csv has no rows: without --stored they "
                             "are made")
        question.publish(measurement, rows, args.quick)
    except (InputError, OSError) as error:
        parser.error(error)
    except KeyboardInterrupt:
        sys.exit("stopped: the same command goes on")
