"""Does LoRA keep the model's answers diverse? How many of 50 differ at temperature 1, right and
wrong apart ("LoRA Learns Less and Forgets Less", fig. 5).

A right answer to a sum has one wording, so the diversity is that of the wrong ones. More wrong
answers are more different ones; the chance that two of them differ does not depend on their number.
"""
from collections import Counter

import torch

from data import tasks, tokenizer
from experiments import compare, trained
from runs import load_base

QUESTIONS, ANSWERS = 20, 50
RUNS = {(method, seed): (variant, seed, "") for seed in trained.SEEDS
        for method, variant in (("full", trained.FULL), ("lora", trained.LORA))}
NAMES = {"base": "base", **compare.NAMES}
COUNTS = ("different", "wrong", "pairs", "alike")  # columns


def rows(runs):
    task = tasks.load("math", tokenizer.load(), 128)
    for (method, seed), directory in {("base", 0): None, **runs}.items():
        model = trained.model(directory) if directory else load_base().eval()
        for number, (prompt, completion) in enumerate(task.val[:QUESTIONS]):
            prompts = torch.tensor([prompt] * ANSWERS)
            told = model.generate(prompts, 8, temperature=1.0, seed=number)[:, len(prompt):]
            answers = [tasks.decode(task.encoding, row).partition("\n")[0] for row in told.tolist()]
            right = tasks.decode(task.encoding, completion).strip()
            wrong = [answer for answer in answers if answer.strip() != right]
            yield {"method": method, "seed": seed, "question": number,
                   "different": len(set(answers)), "wrong": len(wrong),
                   "pairs": pairs(len(wrong)),
                   "alike": sum(pairs(count) for count in Counter(wrong).values())}


def pairs(n):
    return n * (n - 1) // 2


def text(rows):
    cells = []
    for (method, seed), mine in trained.groups(rows, "method", "seed").items():
        total = {name: sum(int(row[name]) for row in mine) for name in COUNTS}
        right = 1 - total["wrong"] / (ANSWERS * len(mine))
        differ = f"{1 - total['alike'] / total['pairs']:.0%}" if total["pairs"] else "–"
        cells.append([NAMES[method], seed, f"{right:.1%}",
                      f"{total['different'] / len(mine):.1f}", differ])
    header = ["model", "seed", "right", f"different answers, of {ANSWERS} to a question",
              "chance that two wrong answers differ"]
    return compare.markdown(header, cells)


QUESTION = trained.Measurement("diversity", RUNS, rows, text)

if __name__ == "__main__":
    trained.ask(QUESTION)
