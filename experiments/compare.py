"""All methods on one task, each at its best learning rate: a table and a figure.

    python -m experiments.compare                       on math, as in the README
    python -m experiments.compare --data pairs.jsonl --steps 300 --rank 4
    python -m experiments.compare --data notes.txt --methods full lora --lrs 1e-4 1e-3 1e-2

Takes the flags of train.py, but for those that make a method, and gives every method the same
batches and the same betas. The runs, 45 without other flags and some three minutes of a core each,
go side by side; each is a row of runs.csv in --out as soon as it ends, and the same command goes
on after a stop. At the end it writes table.md, compare.png and compare.svg there. A method's best
rate is, of those within 2 % of the most that it learned, the one that forgot least.
"""
import argparse
import math
import shlex
import statistics
import sys
from pathlib import Path

import curves
import train
from data.files import InputError, replace_file
from experiments import sweep
from runs import check_unchanged, load_base, number, print_anywhere

NAMES = {"full": "full fine-tuning", "lora": "LoRA", "loraplus": "LoRA+", "loraga": "LoRA-GA",
         "riemannian": "preconditioned"}
METHODS = tuple(NAMES)
LOOKS = dict(zip(METHODS, curves.LOOKS))  # in every figure
AROUND = (0.5, 1, 2)  # times a method's own learning rate
TOLERANCE = 0.02  # so much more of the questions, or of the loss, is no reason to prefer a rate
FORMS = {"exact match": "{:.1%}", "loss": "{:.3f}"}  # how a metric is told
NUMBERS = ("learned", "loss", "docs_before", "docs", "trained", "optimizer_bytes", "seconds",
           "early")
OWN = ("--method", "--lr", "--seed", "--out_dir", "--resume", "--overwrite",  # set here,
       "--init", "--lr_ratio", "--precondition", "--no-precondition", "--gamma", "--damping")


def flags_of(given, data, method, lr, seed):
    """The flags of one run: what is `given`, but for an adapter's flags where there is none."""
    groups = []
    for word in given:
        if word.startswith("--"):
            groups.append([])
        groups[-1].append(word)
    if method == "full":
        groups = [group for group in groups
                  if group[0].removeprefix("--").removeprefix("no-") not in train.OF_ADAPTERS]
    flags = ["--data", data, "--method", method, "--lr", f"{lr:g}", "--seed", str(seed)]
    flags += [word for group in groups for word in group]
    args = train.parse_args(flags)
    for name in ("steps", "batch_size", "betas"):  # said in full: defaults may change
        if f"--{name}" not in flags:
            value = getattr(args, name)
            flags += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    if "--eval_interval" not in flags:
        flags += ["--eval_interval", str(math.ceil(args.steps / 10))]  # ten points of its path
    return shlex.join(flags)


def plan(args, given):
    """The flags of all runs, one seed of everything before the next."""
    every = []
    for seed in range(args.seeds):
        for method in args.methods:
            own = train.PRESETS[method]["lr"]
            for lr in args.lrs or [own * factor for factor in AROUND]:
                every.append(flags_of(given, args.data, method, lr, seed))
    return list(dict.fromkeys(every))


def results(rows):
    """Rows of runs.csv -> dicts of numbers; a run that diverged has learned the worst."""
    metrics = {row["metric"] for row in rows} - {"diverged"}
    if len(metrics) != 1:
        raise InputError("every run diverged: try lower --lrs" if rows else "there are no runs")
    [metric] = metrics
    found = []
    for row in rows:
        args = train.parse_args(shlex.split(row["flags"]))
        found.append({"method": args.method, "lr": args.lr, "seed": args.seed,
                      **outcome(row, metric)})
    return found


def outcome(row, metric):
    """What a run came to, in numbers; `metric` is the task's, or "loss"."""
    if row["metric"] == "diverged" or not math.isfinite(float(row["learned"])):
        worst = 0.0 if metric == "exact match" else float("inf")
        return {"metric": metric, "learned": worst, "loss": float("inf"),
                "forgotten": float("inf"), "early": float("inf"),
                "trained": 0, "optimizer_bytes": 0, "seconds": 0, "losses": [], "path": []}
    result = {name: float(row.get(name) or "nan") for name in NUMBERS}
    result["metric"] = metric
    result["forgotten"] = result["docs"] - result["docs_before"]
    result["learned"] = result["loss"] if metric == "loss" else result["learned"]
    result["losses"] = [float(loss) for loss in (row.get("losses") or "").split()]
    result["path"] = [[float(number) for number in point.split(":")]
                      for point in row["path"].split()]
    return result


def at_rates(found, method):
    """A method's results by learning rate -> {lr: [result of each seed]}, in rising order."""
    rates = {}
    for result in sorted(found, key=lambda result: result["lr"]):
        if result["method"] == method:
            rates.setdefault(result["lr"], []).append(result)
    return rates


def median(results, name):
    return statistics.median(result[name] for result in results)


def better(metric):
    """Whether more of a metric is better, or less -> max or min."""
    return max if metric == "exact match" else min


def best_rate(rates):
    """Of the rates at which the median seed has learned most, but for TOLERANCE, the one that has
    forgotten least; a rate that some seeds did not try is left out."""
    if not rates:
        raise InputError("a part of the table has no runs yet: without --stored they are made")
    seeds = max(len(results) for results in rates.values())
    rates = {lr: results for lr, results in rates.items() if len(results) == seeds}
    medians = {lr: median(results, "learned") for lr, results in rates.items()}
    if next(iter(rates.values()))[0]["metric"] == "exact match":
        most = max(medians.values())
        equals = [lr for lr in rates if medians[lr] >= most - TOLERANCE]
    else:
        least = min(medians.values())
        equals = [lr for lr in rates if medians[lr] <= least * (1 + TOLERANCE)]
    return min(equals, key=lambda lr: median(rates[lr], "forgotten"))


def at_edge(rates, lr):
    """Whether a rate is the lowest or the highest that was tried; of two, each is."""
    return len(rates) > 2 and lr in (min(rates), max(rates))


def best(rates):
    """The best rate in words, and its results -> ("0.01 (edge)", [result of each seed])."""
    lr = best_rate(rates)
    return f"{lr:g}{' (edge)' * at_edge(rates, lr)}", rates[lr]


def common_level(tried):
    """What all of {name: {lr: results}} have learned, each at its best rate, in the median."""
    at_best = [rates[best_rate(rates)] for rates in tried.values()]
    worse = min if better(at_best[0][0]["metric"]) is max else max
    return worse(median(results, "learned") for results in at_best)


def spread(results, name, form):
    """A median, and in brackets the range of the seeds."""
    values = [result[name] for result in results]
    text = form.format(statistics.median(values))
    if len(values) == 1:
        return text
    return f"{text} ({form.format(min(values))} to {form.format(max(values))})"


def markdown(header, rows):
    """A table in Markdown, from cells of text; rows of as many as the header has."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])


def table(found, methods, sizes=True):
    """A Markdown table: each method at its best rate, and, with `sizes`, what it takes."""
    metric = found[0]["metric"]
    header = ["method", "lr", metric, "forgotten, nats"] + ["trained", "optimizer"] * sizes
    lines, edges = [], []
    for method in methods:
        rates = at_rates(found, method)
        if not rates:
            continue
        lr = best_rate(rates)
        if at_edge(rates, lr):
            edges.append(method)
        mine = rates[lr]
        cells = [method, f"{lr:g}", spread(mine, "learned", FORMS[metric]),
                 spread(mine, "forgotten", "{:.2f}")]
        if sizes:
            cells.append(f"{median(mine, 'trained'):,.0f}")
            cells.append(f"{median(mine, 'optimizer_bytes') / 1e6:.1f} MB")
        lines.append(cells)
    text = markdown(header, lines)
    if edges:
        text += "\n\nBest at the edge of the rates that were tried, so perhaps better beyond: " \
                f"{'; '.join(edges)}."
    return text


def reached(value, level, metric):
    return value >= level if better(metric) is max else value <= level


def forgotten_at(results, level):
    """The median over seeds of the docs loss's rise when the metric first reached a level."""
    rises = []
    for result in results:
        rises_there = (docs - result["docs_before"] for _, value, docs in result["path"]
                       if reached(value, level, result["metric"]))
        rises.append(next(rises_there, float("inf")))
    return statistics.median(rises)


def least_forgotten(rates, level):
    """What had been forgotten at a level, at the rate that forgot least by then -> it, the rate."""
    rises = {lr: forgotten_at(results, level) for lr, results in rates.items()}
    lr = min(rises, key=rises.get)
    return rises[lr], lr


def at_level(rates, level):
    """A cell: what had been forgotten at a level, at the rate that forgot least by then."""
    least, lr = least_forgotten(rates, level)
    if least == float("inf"):
        return "–"
    seeds, most = len(rates[lr]), max(map(len, rates.values()))
    few = f", {seeds} of {most} seeds" if seeds < most else ""
    return f"{least:.2f} (lr {lr:g}{few})"


def trade(rates, level):
    """Cells of a table: the best rate, learned and forgotten there, forgotten at a level."""
    lr, results = best(rates)
    return [lr, spread(results, "learned", FORMS[results[0]["metric"]]),
            spread(results, "forgotten", "{:.2f}"), at_level(rates, level)]


def equal_learning(found, methods, levels=(0.5, 0.9)):
    """A Markdown table: what has been forgotten at a level, at the rate that forgot least."""
    rows = [[method, *(at_level(at_rates(found, method), level) for level in levels)]
            for method in methods]
    return markdown(["method", *(f"at {level:.0%}" for level in levels)], rows)


def learned_by_rate(panel, found, methods):
    """A dot a run and a line through the medians: what was learned at each learning rate."""
    for method in methods:
        color, line, marker = LOOKS[method]
        rates = at_rates(found, method)
        panel.plot(list(rates), [median(rates[lr], "learned") for lr in rates], color=color,
                   linestyle=line, marker=marker, markersize=9, label=NAMES[method])
        for lr, results in rates.items():
            panel.plot([lr] * len(results), [result["learned"] for result in results], ".",
                       color=color)
    panel.set(xscale="log", xlabel="learning rate", ylabel=curves.learned(found[0]["metric"]))


def learned_against_forgotten(panel, found, methods):
    """A marker a run, filled at the method's best rate, against the rise of the docs loss."""
    for method in methods:
        color, _, marker = LOOKS[method]
        rates = at_rates(found, method)
        if not rates:
            continue
        best = best_rate(rates)
        for lr, results in rates.items():
            face = color if lr == best else "none"
            panel.plot([max(result["forgotten"], 0.01) for result in results],
                       [result["learned"] for result in results], linestyle="none", marker=marker,
                       markersize=9, markeredgewidth=1.8, color=color, markerfacecolor=face,
                       label=NAMES[method] if lr == best else None)
    panel.set(xscale="log", xlabel=curves.FORGOTTEN, ylabel=curves.learned(found[0]["metric"]))
    panel.xaxis.set_major_formatter("{x:g}")


def draw(found, methods, path):
    """What was learned by learning rate, and against what was forgotten."""
    figure, panels = curves.new_figure(13, 5.5, panels=2)
    learned_by_rate(panels[0], found, methods)
    learned_against_forgotten(panels[1], found, methods)
    if found[0]["metric"] == "exact match":
        for panel in panels:
            curves.in_percent(panel)
    curves.name_lines(figure, panels[0], columns=len(methods))
    curves.write(figure, path)


def compare(args, given):
    out = Path(args.out or f"out/compare-{Path(args.data).stem}")
    every = plan(args, given)
    first = train.parse_args(shlex.split(every[0]))
    check_unchanged(first, out / "runs.csv", "give another --out")
    if not out.exists():  # what cannot be used is told before the runs, and a download is made once
        train.load_tasks(first, load_base(first.init_from))
    rows = sweep.sweep(every, out / "runs.csv", args.jobs)
    found = results([rows[flags] for flags in every])
    methods = [method for method in METHODS if method in args.methods]
    text = f"`python -m experiments.compare {shlex.join(sys.argv[1:])}`: medians of " \
           f"{args.seeds} seeds (and their range), each method at its best learning rate\n\n" \
           f"{table(found, methods)}\n"
    if found[0]["metric"] == "exact match":
        text += "\nWhat had been forgotten when that much was first learned, at the rate that " \
                f"forgot least\n\n{equal_learning(found, methods)}\n"
    with replace_file(out / "table.md") as file:
        file.write(text.encode())
    print(f"\n{text}")
    if not curves.available():
        print(f"{curves.MISSING}; {out}/table.md has the numbers")
        return
    for kind in ("png", "svg"):
        draw(found, methods, out / f"compare.{kind}")
    print(f"figure: {out}/compare.png")


def main():
    parser = argparse.ArgumentParser(prog="python -m experiments.compare", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: {message}\n")
    add = parser.add_argument
    add("--data", default="math", help="what train.py takes: a task's name, a text, pairs (math)")
    add("--methods", nargs="+", choices=METHODS, default=METHODS, help="all five without it")
    add("--lrs", nargs="+", type=number(float, 1e-12, 1e36), metavar="LR", help="the learning "
        "rates to try; else each method's own default, its half and its double")
    add("--seeds", type=number(int, 1), default=3, help="how many, from 0 (3)")
    sweep.add_jobs(parser)
    add("--out", metavar="DIR", help="where the results go; out/compare-<data> without it")
    args, given = parser.parse_known_args()
    print_anywhere()
    given = [word for each in given  # --rank=4 is --rank 4
             for word in (each.split("=", 1) if each.startswith("--") else [each])]
    args.methods = list(dict.fromkeys(args.methods))
    for word in given:
        if word in OWN:
            parser.error(f"{word} is set by the comparison itself")
    if given and not given[0].startswith("--"):
        parser.error(f"unrecognized argument: {given[0]}")
    try:
        compare(args, given)
    except (InputError, OSError) as error:
        parser.error(error)
    except KeyboardInterrupt:
        sys.exit("stopped: the same command goes on")


if __name__ == "__main__":
    main()
