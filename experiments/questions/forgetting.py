"""LoRA learns less and forgets less (Biderman et al., arXiv 2405.09673)."""
import math
from collections import Counter

import torch

from data import tasks, tokenizer
from experiments import compare, plot, question, trained
from experiments.compare import METHODS, NAMES
from experiments.question import ON_CODE, Measurement, Question, Variant, flag
from model import GPT
from train import PRESETS

# ==== Who learns more, who forgets less, who trades better? Four tasks ============================

SHORT = "--steps 200 --eval_interval 50 --batch_size 8"
TASKS = {  # flags; multiples of a method's rate on math; its level for equal learning, if fixed
    "math": ("", (0.25, 0.5, 1, 2, 4), 0.9),
    "code": (ON_CODE, (0.25, 0.5, 1, 2, 4), None),
    "pairs": (SHORT, (0.5, 1, 2, 4), None),
    "plays": (SHORT, (0.5, 1, 2, 4), None),
}
LOW = {"code": (0.03125, 0.0625, 0.125), "pairs": (0.0625, 0.125, 0.25),
       "plays": (0.0625, 0.125, 0.25)}  # for full fine-tuning, which forgets less there
EVERY_SEED = {"full": (1, 0.25, 0.125, 0.0625), "loraplus": (1, 0.5)}


def variant_for(data, method):
    lr = PRESETS[method]["lr"]
    flags, factors, _ = TASKS[data]
    if method == "full":
        factors = (*LOW.get(data, ()), *factors)
    always = () if data == "math" else EVERY_SEED.get(method, (1,))
    return Variant(method, tuple(lr * factor for factor in factors), flags, data=data,
                   always=tuple(lr * factor for factor in always))


tradeoff = {f"{data}: {NAMES[method]}": variant_for(data, method)
            for data in TASKS for method in METHODS}


def of_task(found, data):
    """{method: {learning rate: [result of each seed]}} on one task."""
    return {method: compare.at_rates(found, f"{data}: {name}") for method, name in NAMES.items()}


def tradeoff_table(found):
    """For each task its own table: at the best rate, and at equal learning."""
    tables = []
    for data, (_, _, level) in TASKS.items():
        tried = of_task(found, data)
        if any(tried.values()):  # --quick leaves the plays out
            names = [f"{data}: {name}" for name in NAMES.values()]
            column = level_column(level or compare.common_level(tried), data)
            tables.append(compare.best_table(found, names, data, column))
    return "\n\n".join(tables)


def level_column(level, data):
    """The last column of these tables, as compare.best_table takes it."""
    name = compare.level_name(level, "exact match" if data == "math" else "loss")
    return {f"at {name}": lambda _, rates: compare.at_level(rates, level)}


def draw_fronts(found):
    figure, panels = plot.new_figure(14, 5.5, panels=2)
    for panel, data in zip(panels, ("math", "code")):
        panel.set_title(data)
        for method, rates in of_task(found, data).items():
            compare.draw_front(panel, sum(rates.values(), []), method)
    plot.in_percent(panels[0])
    plot.name_lines(figure, panels[0], columns=len(METHODS))
    return figure


# ==== On code: is it the rank, or what full fine-tuning trains besides? ===========================

FULL = (1.875e-4, 3.75e-4, 7.5e-4, 1.5e-3, 3e-3)
frozen = {
    "full fine-tuning": Variant("full", FULL, ON_CODE, data="code"),
    "full, embeddings and norms frozen": Variant(
        "full", FULL, ON_CODE, "experiments.variant --freeze embeddings", "code", FULL[1:3]),
    "LoRA, r 8": Variant("lora", (2.5e-3, 5e-3, 1e-2, 2e-2), ON_CODE, data="code"),
    "LoRA, r 128": Variant("lora", (6.25e-4, 1.25e-3, 2.5e-3, 5e-3), f"--rank 128 {ON_CODE}",
                           data="code", always=(1.25e-3,)),
}


def frozen_table(found):
    level = compare.common_level({name: compare.at_rates(found, name) for name in frozen})
    return compare.best_table(found, frozen, "what trains", level_column(level, "code"))


# ==== Less, or later? =============================================================================

CODE_900 = "--steps 900 --eval_interval 150 --batch_size 8"
longer = {
    "math: full, 3000 steps": Variant("full", (7.5e-4, 1.5e-3), "--steps 3000",
                                      always=(7.5e-4, 1.5e-3)),
    "math: LoRA, 3000 steps": Variant("lora", (2.5e-3,), "--steps 3000"),
    "math: LoRA, r 1, 3000 steps": Variant("lora", (5e-3, 1e-2), "--rank 1 --steps 3000"),
    "code: full, 900 steps": Variant("full", (3.75e-4, 7.5e-4, 1.5e-3), CODE_900, data="code"),
    "code: LoRA, 900 steps": Variant("lora", (2.5e-3, 5e-3, 1e-2, 2e-2), CODE_900, data="code"),
}


# ==== Does LoRA bear large batches worse? =========================================================

BATCHES = {8: (300, 50), 32: (75, 25), 128: (19, 10)}  # size: steps, eval_interval
TRIED = {"full": {8: (7.5e-4, 1.5e-3, 3e-3), 32: (7.5e-4, 1.5e-3, 3e-3, 6e-3),
                  128: (7.5e-4, 1.5e-3, 3e-3)},
         "lora": {8: (5e-3, 1e-2, 2e-2, 4e-2), 32: (1e-2, 2e-2, 4e-2),
                  128: (5e-3, 1e-2, 2e-2, 4e-2)}}
batches = {
    f"{NAMES[method]}, batches of {size}": Variant(
        method, TRIED[method][size], f"--steps {steps} --eval_interval {interval} "
        f"--batch_size {size} {flag('warmup', steps // 15, 20)}", data="code")
    for size, (steps, interval) in BATCHES.items() for method in TRIED}


# ==== Does LoRA regularise more than weight decay and dropout? ====================================

regularisation = {f"full, weight decay {decay}": Variant("full", (3e-3,),
                                                          f"--weight_decay {decay}")
                   for decay in ("0.1", "1")}
regularisation |= {f"full, dropout {share}": Variant("full", (3e-3,), f"--model_dropout {share}")
                   for share in ("0.1", "0.3")}


# ==== How does LoRA's best rate compare with full fine-tuning's? ==================================

# A step of Adam with rate η on W changes what a layer of width d_in computes for an input x that it
# has just seen by η·Σ|xₖ|. A step on LoRA's B changes it by η·s·Σ|(Ax)ⱼ|, which is smaller by
# √3·d_in/(s·r) where A is uniform in ±1/√d_in. A step on A changes it by more than B's as soon as
# B's entries are above 1/(√3·d_in). So with A frozen LoRA's rate must be larger by √3·d_in/(s·r).
STEPS = (100, 300, 1000)
KINDS = {"full": ("full", (7.5e-4, 1.5e-3, 3e-3, 6e-3), ""),
         "LoRA": ("lora", (2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2), ""),
         "LoRA, A frozen": ("lora", (2e-2, 4e-2, 8e-2, 0.16), "experiments.variant --freeze A")}
rates = {f"{kind}, {steps}": Variant(method, tried, flag("steps", steps, 1000), module)
         for steps in STEPS for kind, (method, tried, module) in KINDS.items()}


def rate_table(found):
    rows = []
    for steps in STEPS:
        texts, results = zip(*(compare.at_best(compare.at_rates(found, f"{kind}, {steps}"))
                               for kind in KINDS))
        full, *others = (seeds[0]["lr"] for seeds in results)
        rows.append([str(steps), *texts, *(f"{lr / full:.1f}" for lr in others)])
    return compare.markdown(["steps", *(f"{kind}: lr" for kind in KINDS), "LoRA / full",
                             "A frozen / full"], rows)


# ==== Which rank has full fine-tuning's change of the weights? ====================================

CASES = {
    "math, 100 steps": (trained.FULL, "--steps 100"),
    "math, 1000 steps": (trained.FULL, ""),
    "math, 300 steps, a tenth of the rate": (Variant("full", (3e-4,)), "--steps 300"),
    "code, 300 steps": (Variant("full", (3e-3,), data="code"), "--steps 300 --batch_size 8"),
    "code, 300 steps, a tenth of the rate": (Variant("full", (3e-4,), data="code"),
                                             "--steps 300 --batch_size 8"),
}
PERTURBED = {(case, seed): (variant, seed, more)
             for seed in trained.SEEDS for case, (variant, more) in CASES.items()}


def variance_rank(W, share=0.9):
    """How many singular values hold this share of ‖W‖²_F."""
    energy = torch.linalg.svdvals(W).square().cumsum(0)
    return (energy < share * energy[-1]).sum().item() + 1


def measure_perturbation(runs):
    for (case, seed), directory in runs.items():
        for name, (_, delta) in trained.deltas(directory).items():
            generator = torch.Generator().manual_seed(seed)
            noise = torch.randn(delta.shape, dtype=delta.dtype, generator=generator)
            yield {"run": case, "seed": seed, "layer": name,
                   "kind": "attention" if ".attn." in name else "MLP",
                   "rank": variance_rank(delta), "noise": variance_rank(noise)}


def perturbation_table(rows):
    found = question.groups(rows, "run", "kind")

    def cells(case, column):
        return [compare.spread([int(row[column]) for row in found[case, kind]], "{:.0f}")
                for kind in ("attention", "MLP")]

    table = [[case, *cells(case, "rank")] for case in CASES]
    table.append(["noise of the same shape", *cells("math, 100 steps", "noise")])
    return compare.markdown(["singular values for 90 % of ‖ΔW‖², of 256", "attention", "MLP"],
                            table)


# ==== Do the answers stay diverse? ================================================================

PROMPTS, ANSWERS = 20, 50  # at temperature 1
DIVERSE = {(method, seed): (variant, seed, "") for seed in trained.SEEDS
           for method, variant in (("full", trained.FULL), ("lora", trained.LORA))}


def measure_diversity(runs):
    """A right answer to a sum has one wording, so wrong answers are counted apart."""
    encoding = tokenizer.load()
    task = tasks.load("math", encoding, 128)
    for (method, seed), directory in {("base", 0): None, **runs}.items():
        model = trained.model_of(directory) if directory else GPT.from_pretrained().eval()
        for number, (prompt, completion) in enumerate(task.val[:PROMPTS]):
            prompts = torch.tensor([list(prompt)] * ANSWERS)
            sampled = model.generate(prompts, 8, temperature=1.0, seed=number)[:, len(prompt):]
            answers = [tasks.decode(encoding, row).partition("\n")[0] for row in sampled.tolist()]
            right = tasks.decode(encoding, completion).strip()
            wrong = [answer for answer in answers if answer.strip() != right]
            yield {"method": method, "seed": seed, "question": number,
                   "different": len(set(answers)), "wrong": len(wrong),
                   "pairs": math.comb(len(wrong), 2),
                   "alike": sum(math.comb(count, 2) for count in Counter(wrong).values())}


def diversity_table(rows):
    """A row a model: the median and the range of its seeds."""
    measured = {}
    for (method, _), mine in question.groups(rows, "method", "seed").items():
        wrong, pairs, alike, different = (sum(int(row[name]) for row in mine)
                                          for name in ("wrong", "pairs", "alike", "different"))
        right, differ = 1 - wrong / (ANSWERS * len(mine)), 1 - alike / pairs if pairs else None
        measured.setdefault(method, []).append((right, different / len(mine), differ))
    table = []
    for method, seeds in measured.items():
        right, different, differ = zip(*seeds)
        differ = [share for share in differ if share is not None]  # None: fewer than two are wrong
        table.append([NAMES.get(method, method),
                      compare.spread([100 * share for share in right], "{:.1f}"),
                      compare.spread(different, "{:.1f}"),
                      compare.spread([100 * share for share in differ], "{:.0f}")])
    return compare.markdown(["model", "right, %", "different answers of 50",
                             "two wrong answers differ, %"], table)


QUESTIONS = (
    Question("tradeoff", tradeoff, tradeoff_table, draw=draw_fronts),
    Question("frozen", frozen, frozen_table),
    Question("longer", longer, "run"),
    Question("batches", batches, "code", choose=compare.learned_most),
    Question("regularisation", regularisation, "method"),
    Question("rates", rates, rate_table, metric="loss"),
    Measurement("perturbation", PERTURBED, measure_perturbation, perturbation_table),
    Measurement("diversity", DIVERSE, measure_diversity, diversity_table),
)
