"""Compares all methods on one task, each at its best learning rate: a table and a figure.

    python -m experiments.compare                       on math, as in the README
    python -m experiments.compare --data pairs.jsonl --steps 300 --rank 4
    python -m experiments.compare --data notes.txt --methods full lora --lrs 1e-4 1e-3 1e-2

Takes train.py's flags, except those that make a method. Every method gets the same batches and the
same betas. Without other flags there are 45 runs of about three minutes of a core each. They run
side by side, each is a row of runs.csv in --out as soon as it ends, and the same command goes on
after a stop. At the end it writes table.md, compare.png and compare.svg there. A method's best rate
is the one that forgot least, of those within 2 % of the most that the method learned.
"""
import math
import shlex
import statistics
import sys
from pathlib import Path

import train
from data import tasks, tokenizer
from data.files import InputError, command_parser, number, replace_file, run_command
from experiments import plot, sweep

NAMES = {"full": "full fine-tuning", "lora": "LoRA", "loraplus": "LoRA+", "loraga": "LoRA-GA",
         "riemannian": "preconditioned"}
METHODS = tuple(NAMES)
LOOKS = dict(zip(METHODS, plot.LOOKS))  # the same in every figure
AROUND = (0.5, 1, 2)  # learning rates, as multiples of a method's default
TOLERANCE = 0.02  # rates whose results differ by less are equally good
NUMBERS = ("learned", "loss", "docs_before", "docs", "trained", "optimizer_bytes", "early")
SET_HERE = ("--method", "--lr", "--seed", "--out_dir", "--resume", "--overwrite", "--init",
            "--lr_ratio", "--precondition", "--no-precondition", "--gamma", "--damping")


# ==== Runs and their results ======================================================================


def flags_of(given, data, method, lr, seed):
    """The flags of one run, in the order in which they are stored.

    `given` are more flags of train.py. Full fine-tuning gets none that only adapters have.
    """
    groups = []
    for word in given:
        if word.startswith("--"):
            groups.append([])
        groups[-1].append(word)
    if method == "full":
        groups = [group for group in groups
                  if group[0].removeprefix("--").removeprefix("no-") not in train.ADAPTER_FLAGS]
    flags = ["--data", data, "--method", method, "--lr", f"{lr:g}", "--seed", str(seed)]
    flags += [word for group in groups for word in group]

    # A stored row must outlive a change of defaults: write these in full.
    args = train.parse_args(flags)
    for name in ("steps", "batch_size", "betas"):
        if f"--{name}" not in flags:
            value = getattr(args, name)
            flags += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    if "--eval_interval" not in flags:
        flags += ["--eval_interval", str(math.ceil(args.steps / 10))]
    return shlex.join(flags)


def plan(args, given):
    """The flags of all runs, one seed of everything before the next."""
    runs = []
    for seed in range(args.seeds):
        for method in args.methods:
            default = train.PRESETS[method]["lr"]
            for lr in args.lrs or [default * factor for factor in AROUND]:
                runs.append(flags_of(given, args.data, method, lr, seed))
    return list(dict.fromkeys(runs))


def results(rows):
    """Stored rows -> dicts of numbers with the run's method, lr and seed."""
    metrics = {row["metric"] for row in rows} - {"diverged"}
    if len(metrics) != 1:
        raise InputError("every run diverged: try lower --lrs" if rows else "there are no runs")
    [metric] = metrics
    found = []
    for row in rows:
        args = train.parse_args(shlex.split(row["flags"]))
        found.append({"method": args.method, "lr": args.lr, "seed": args.seed,
                      **numbers_of(row, metric)})
    return found


def numbers_of(row, metric):
    """What a run came to; a run that diverged has the worst numbers.

    metric   "exact match" or "loss": which of the two `learned` is
    """
    if row["metric"] == "diverged" or not math.isfinite(float(row["learned"])):
        worst = 0.0 if metric == "exact match" else math.inf
        return {"metric": metric, "learned": worst, "loss": math.inf, "forgotten": math.inf,
                "early": math.inf, "trained": 0, "optimizer_bytes": 0, "path": []}
    result = {name: float(row.get(name) or "nan") for name in NUMBERS}
    result["metric"] = metric
    result["forgotten"] = result["docs"] - result["docs_before"]
    if metric == "loss":
        result["learned"] = result["loss"]
    result["path"] = [[float(number) for number in point.split(":")]
                      for point in row["path"].split()]
    return result


def at_rates(found, method):
    """A method's results by learning rate, in rising order -> {lr: [result of each seed]}."""
    rates = {}
    for result in sorted(found, key=lambda result: result["lr"]):
        if result["method"] == method:
            rates.setdefault(result["lr"], []).append(result)
    return rates


# ==== The best learning rate ======================================================================


def median(results, name):
    return statistics.median(result[name] for result in results)


def better(metric):
    """max or min: which value of a metric is better."""
    return max if metric == "exact match" else min


def reached(value, level, metric):
    return value >= level if better(metric) is max else value <= level


def best_rate(rates, tolerance=TOLERANCE):
    """Of the rates whose median seed learned most, within a tolerance, the one that forgot least.

    Rates that not every seed has tried are left out.
    """
    if not rates:
        raise InputError("a part of the table has no runs yet: without --stored they are made")
    seeds = max(len(results) for results in rates.values())
    rates = {lr: results for lr, results in rates.items() if len(results) == seeds}
    medians = {lr: median(results, "learned") for lr, results in rates.items()}
    metric = next(iter(rates.values()))[0]["metric"]
    most = better(metric)(medians.values())
    level = most - tolerance if metric == "exact match" else most * (1 + tolerance)
    equal = [lr for lr in rates if reached(medians[lr], level, metric)]
    return min(equal, key=lambda lr: median(rates[lr], "forgotten"))


def learned_most(rates):
    """The rate whose median seed learned most, whatever it forgot."""
    return best_rate(rates, tolerance=0)


def at_edge(rates, lr):
    """Whether a rate is the lowest or highest of three or more: the best may lie beyond."""
    return len(rates) > 2 and lr in (min(rates), max(rates))


def common_level(tried):
    """What the worst method of {name: {lr: results}} learned at its best rate, in the median."""
    best = [rates[best_rate(rates)] for rates in tried.values()]
    worse = min if better(best[0][0]["metric"]) is max else max
    return worse(median(results, "learned") for results in best)


# ==== Forgetting at equal learning ================================================================


def front(results):
    """The points of all paths that no other point beats in both -> [(forgotten, learned)]."""
    points = sorted((max(docs - result["docs_before"], 0.01), value)
                    for result in results for _, value, docs in result["path"][1:])
    kept = []
    for forgotten, value in points:
        if not kept or not reached(kept[-1][1], value, results[0]["metric"]):
            kept.append((forgotten, value))
    return kept


def forgotten_at(results, level):
    """The median rise of the docs loss at the first evaluation that reached a level of the metric.

    A seed that never got there counts as infinite.
    """
    rises = []
    for result in results:
        there = [docs - result["docs_before"] for _, value, docs in result["path"]
                 if reached(value, level, result["metric"])]
        rises.append(there[0] if there else math.inf)
    return statistics.median(rises)


def at_level(rates, level, with_rate=True):
    """A cell: what was forgotten at a level, at the rate that forgot least by then."""
    rises = {lr: forgotten_at(results, level) for lr, results in rates.items()}
    lr = min(rises, key=rises.get)
    if rises[lr] == math.inf:
        return "–"
    seeds, most = len(rates[lr]), max(map(len, rates.values()))
    notes = [f"lr {lr:g}"] * with_rate + [f"{seeds} of {most} seeds"] * (seeds < most)
    return f"{rises[lr]:.2f}" + (f" ({', '.join(notes)})" if notes else "")


# ==== Tables ======================================================================================


def markdown(header, rows):
    """A table in Markdown from cells of text."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])


def spread(values, form):
    """A cell: a median, and in brackets the range."""
    text = form.format(statistics.median(values))
    if len(values) == 1:
        return text
    return f"{text} ({form.format(min(values))}–{form.format(max(values))})"


def of_seeds(results, name, form="{:.2f}"):
    return spread([result[name] for result in results], form)


def learned(results):
    """A cell: what the seeds learned; shares in per cent."""
    if results[0]["metric"] == "exact match":
        return spread([100 * result["learned"] for result in results], "{:.1f}")
    return of_seeds(results, "learned", "{:.3f}")


def at_best(rates, choose=best_rate):
    """The best rate as text, and its results -> ("0.01 (edge)", [result of each seed])."""
    lr = choose(rates)
    edge = " (edge)" if at_edge(rates, lr) else ""
    return f"{lr:g}{edge}", rates[lr]


def best_table(found, names, first="method", more=None, choose=best_rate):
    """Each of these names at its best rate: what was learned and forgotten there.

    names   as in the results; of "code: LoRA" the table shows "LoRA"
    more    {header: function of the best rate's results and of all rates -> a cell}
    """
    more, rows = more or {}, []
    for name in names:
        rates = at_rates(found, name)
        lr, results = at_best(rates, choose)
        rows.append([shown(name), lr, learned(results), of_seeds(results, "forgotten"),
                     *(cell(results, rates) for cell in more.values())])
    metric = "exact match, %" if results[0]["metric"] == "exact match" else "loss"
    return markdown([first, "lr", metric, "forgotten, nats", *more], rows)


def shown(name):
    return NAMES.get(name, name.rpartition(": ")[2])


def level_table(found, names, levels, with_rate=True):
    """What had been forgotten at these levels, each at the rate that forgot least by then."""
    rows = [[shown(name), *(at_level(at_rates(found, name), level, with_rate) for level in levels)]
            for name in names]
    header = [f"at {level_name(level, found[0]['metric'])}" for level in levels]
    return markdown(["forgotten, nats", *header], rows)


def level_name(level, metric):
    return f"{100 * level:g} %" if metric == "exact match" else f"{level:.3f}"


# Cells of more columns, as best_table takes them.


def trained(results, _):
    return f"{median(results, 'trained'):,.0f}"


def optimizer(results, _):
    return f"{median(results, 'optimizer_bytes') / 1e6:.1f} MB"


def table(found, methods):
    """Each method at its best rate, and what it needs."""
    return best_table(found, methods, more={"trained": trained, "optimizer": optimizer})


# ==== Figures =====================================================================================


def learned_by_rate(panel, found, methods):
    """A dot for each run and a line through the medians."""
    for method in methods:
        color, line, marker = LOOKS[method]
        rates = at_rates(found, method)
        medians = [median(results, "learned") for results in rates.values()]
        panel.plot(list(rates), medians, color=color, linestyle=line, marker=marker, markersize=9,
                   label=NAMES[method])
        for lr, results in rates.items():
            panel.plot([lr] * len(results), [result["learned"] for result in results], ".",
                       color=color)
    panel.set(xscale="log", xlabel="learning rate", ylabel=plot.learned(found[0]["metric"]))


def learned_against_forgotten(panel, found, methods):
    """A marker for each run, filled at the method's best rate."""
    for method in methods:
        color, _, marker = LOOKS[method]
        rates = at_rates(found, method)
        if not rates:
            continue
        best = best_rate(rates)
        for lr, results in rates.items():
            panel.plot([max(result["forgotten"], 0.01) for result in results],
                       [result["learned"] for result in results], linestyle="none", marker=marker,
                       markersize=9, markeredgewidth=1.8, color=color,
                       markerfacecolor=color if lr == best else "none",
                       label=NAMES[method] if lr == best else None)
    panel.set(xscale="log", xlabel=plot.FORGOTTEN, ylabel=plot.learned(found[0]["metric"]))
    panel.xaxis.set_major_formatter("{x:g}")


def draw_front(panel, results, method):
    """A method's front, from all its runs."""
    color, line, marker = LOOKS[method]
    points = front(results)
    if points:
        panel.step(*zip(*points), where="post", color=color, linestyle=line, marker=marker,
                   label=NAMES[method])
    panel.set(xscale="log", xlabel=plot.FORGOTTEN, ylabel=plot.learned(results[0]["metric"]))
    panel.xaxis.set_major_formatter("{x:g}")


def draw(found, methods, path):
    """Learned by learning rate, and learned against forgotten."""
    figure, panels = plot.new_figure(13, 5.5, panels=2)
    learned_by_rate(panels[0], found, methods)
    learned_against_forgotten(panels[1], found, methods)
    if found[0]["metric"] == "exact match":
        for panel in panels:
            plot.in_percent(panel)
    plot.name_lines(figure, panels[0], columns=len(methods))
    plot.write(figure, path)


# ==== The command =================================================================================


def compare(args, given):
    out = Path(args.out or f"out/compare-{Path(args.data).stem}")
    stored = out / "runs.csv"
    runs = plan(args, given)
    check_data(train.parse_args(shlex.split(runs[0])), stored)
    rows = sweep.sweep(runs, stored, args.jobs)
    found = results([rows[flags] for flags in runs])
    methods = [method for method in METHODS if method in args.methods]
    text = (f"`python -m experiments.compare {shlex.join(sys.argv[1:])}`: medians of {args.seeds} "
            "seeds (and their range), each method at its best learning rate (edge: the lowest or "
            f"highest one tried, so perhaps better beyond)\n\n{table(found, methods)}\n")
    if found[0]["metric"] == "exact match":
        text += ("\nWhat had been forgotten when that share was first learned, at the rate that "
                 f"forgot least\n\n{level_table(found, methods, (0.5, 0.9))}\n")
    with replace_file(out / "table.md") as file:
        file.write(text.encode())
    print(f"\n{text}")
    if not plot.available():
        print(f"{plot.MISSING}; {out}/table.md has the numbers")
        return
    for kind in ("png", "svg"):
        draw(found, methods, out / f"compare.{kind}")
    print(f"figure: {out}/compare.png")


def check_data(args, stored):
    """Raises InputError for data that cannot be used, before any run and not after hours of them.

    Rows are found again by their flags, which do not say that a file has changed since.
    """
    for path in filter(None, (args.data, args.val_data)):
        if Path(path).is_file() and stored.exists():
            if Path(path).stat().st_mtime > stored.stat().st_mtime:
                raise InputError(f"{path} is newer than {stored}, which has runs on the older "
                                 "file: give another --out")
    tasks.load(args.data, tokenizer.load_for(args.init_from), args.block_size, args.val_data)


def build_parser():
    parser = command_parser(__doc__, "python -m experiments.compare")
    add = parser.add_argument
    add("--data", default="math", help="as for train.py: math, a file of pairs or a text (math)")
    add("--methods", nargs="+", choices=METHODS, default=METHODS, help="some of the five (all)")
    add("--lrs", nargs="+", type=number(float, 1e-12, 1e36), metavar="LR",
        help="the learning rates (each method's default, half of it and twice as much)")
    add("--seeds", type=number(int, 1), default=3, help="how many, from 0 (3)")
    add("--out", metavar="DIR", help="where the results go (out/compare-<data>)")
    sweep.add_jobs(parser)
    return parser


def main():
    args, given = build_parser().parse_known_args()
    args.methods = list(dict.fromkeys(args.methods))
    given = [word for each in map(train.underscores, given)  # --grad-clip=4 is --grad_clip 4
             for word in (each.split("=", 1) if each.startswith("--") else [each])]
    for word in given:
        if word in SET_HERE:
            raise InputError(f"{word} is set by the comparison itself")
    if given and not given[0].startswith("--"):
        raise InputError(f"unrecognized argument: {given[0]}")
    compare(args, given)


if __name__ == "__main__":
    run_command(main)
