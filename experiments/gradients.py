"""LoRA-GA: how many questions must its gradient be taken from? What comes of it in the end.

One batch of 32, four (what train.py takes) and 64, at the learning rate that is best with four.
"""
import train
from experiments import question

BATCH = 32
VARIANTS = {
    f"{batches * BATCH} questions": question.Variant(
        "loraga", (1e-3,), module="" if batches == train.GA_BATCHES else
        f"experiments.variant --gradient_batches {batches}")
    for batches in (1, train.GA_BATCHES, 64)}
QUESTION = question.Question("gradients", VARIANTS)

if __name__ == "__main__":
    question.ask(QUESTION)
