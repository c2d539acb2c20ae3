"""Does LoRA keep the model's answers diverse? How many of 50 differ at temperature 1, right and
wrong apart ("LoRA Learns Less and Forgets Less", fig. 5).

A right answer to a sum has one wording, so the diversity is that of the wrong ones.
"""
import torch

from data import tasks, tokenizer
from experiments import compare, trained
from runs import load_base

QUESTIONS, ANSWERS = 20, 50
RUNS = {(method, seed): (variant, seed, "") for seed in trained.SEEDS
        for method, variant in (("full", trained.FULL), ("lora", trained.LORA))}
NAMES = {"base": "base", **compare.NAMES}


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
                   "right": ANSWERS - len(wrong), "wrong": len(wrong),
                   "different wrong": len(set(wrong))}


def text(rows):
    lines = ["| model | seed | right, of all answers | wrong | different, of the wrong |",
             "|---|---|---|---|---|"]
    for (method, seed), mine in trained.groups(rows, "method", "seed").items():
        right, wrong, different = (sum(int(row[name]) for row in mine)
                                   for name in ("right", "wrong", "different wrong"))
        share = f"{different / wrong:.0%}" if wrong else "–"
        lines.append(f"| {NAMES[method]} | {seed} | {right / (right + wrong):.1%} | {wrong} | "
                     f"{share} |")
    return "\n".join(lines)


QUESTION = trained.Measurement("diversity", RUNS, rows, text)

if __name__ == "__main__":
    trained.ask(QUESTION)
