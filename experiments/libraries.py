"""Do PEFT's versions of the four methods end where these do? The same batches and betas, and at
least the rate that is best here.

    python -m experiments.libraries          needs peft

Also writes results/first_steps.csv: the cosine of LoRA-GA's first step with the gradient, for both.
"""
import statistics
import sys

import torch

import lora
import train
from data import base, tasks, tokenizer
from data.files import write_csv
from experiments import claims, compare, question, sweep

METHODS = compare.METHODS[1:]  # PEFT has no part in full fine-tuning
THEIRS = {"loraga": (0.5, 1, 2, 4),  # PEFT's has another size, and may want another rate
          "riemannian": (0.25, 0.5, 1, 2)}  # and its δ is 0.01
COSINES = question.RESULTS / "first_steps.csv"


def here_and_there(method):
    """A method's two variants by their names."""
    lr, name = train.PRESETS[method]["lr"], compare.NAMES[method]
    here = [lr * factor for factor in compare.AROUND]
    there = [lr * factor for factor in THEIRS.get(method, (1,))]
    return {f"{name}, here": question.Variant(method, here),
            f"{name}, PEFT": question.Variant(method, there, module="experiments.peft_run",
                                              always=(lr,))}


VARIANTS = {}
for each in METHODS:
    VARIANTS |= here_and_there(each)
VARIANTS["preconditioned, here, δ 0.01"] = question.Variant(
    "riemannian", [train.PRESETS["riemannian"]["lr"]], "--damping 0.01")


def first_steps():
    """LoRA-GA's first step on the same batches, a row a layer: its cosine with the gradient."""
    from experiments import peft_run

    args = train.parse_args(["--method", "loraga"])
    task = tasks.load("math", tokenizer.load(), args.block_size)
    model = base.load()
    batches = [(*task.batch(0, step, args.batch_size), 1.0) for step in range(train.GA_BATCHES)]
    peft_run.start(args, model, batches, train.share_of_loss, 16.0)
    theirs = [(layer.lora_A["default"].weight, layer.lora_B["default"].weight)
              for layer in model.modules() if hasattr(layer, "lora_A")]
    for number, (G, (A, B)) in enumerate(zip(claims.base_gradients(train.GA_BATCHES), theirs)):
        S = torch.linalg.svdvals(G)
        ours = claims.cosine_of_first_step(G, *lora.lora_ga_factors(G, args.rank))
        yield {"layer": number, "here": round(ours, 4),
               "PEFT": round(claims.cosine_of_first_step(G, A.double(), B.double()), 4),
               "best": round((S[:2 * args.rank].norm() / S.norm()).item(), 4)}


def text(found):
    table, rows = compare.table(found, list(VARIANTS), sizes=False), sweep.read(COSINES)
    if not rows:
        return table
    cells = []
    for name in ("here", "PEFT", "best"):
        cosines = [float(row[name]) for row in rows]
        each = statistics.median(cosines), min(cosines), max(cosines)
        cells.append([name, *(f"{cosine:.3f}" for cosine in each)])
    header = ["LoRA-GA's first step", "median cosine with the gradient", "least", "most"]
    return f"{table}\n\n{compare.markdown(header, cells)}"


QUESTION = question.Question("libraries", VARIANTS, text=text)


def main():
    if not {"--stored", "--quick", "--help", "-h"} & set(sys.argv):
        rows = list(first_steps())
        write_csv(COSINES, list(rows[0]), rows)
    question.ask(QUESTION)


if __name__ == "__main__":
    main()
