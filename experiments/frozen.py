"""On `code` full fine-tuning trades better than LoRA: is it its rank, or what else it trains?

Full fine-tuning trains the embeddings and the norms as well, and is bound to no rank. If the former
is the reason, it must fall behind once they are frozen; if the rank is, LoRA must come nearer as
its rank rises to 128, half of what these layers have.
"""
from experiments import compare, question

FULL = (1.875e-4, 3.75e-4, 7.5e-4, 1.5e-3, 3e-3)
FREEZE = "experiments.variant --freeze embeddings"
VARIANTS = {
    "full fine-tuning": question.Variant("full", FULL, question.ON_CODE, data="code"),
    "full, embeddings and norms frozen": question.Variant("full", FULL, question.ON_CODE, FREEZE,
                                                          data="code", always=FULL[1:3]),
    "LoRA, r 8": question.Variant("lora", (2.5e-3, 5e-3, 1e-2, 2e-2), question.ON_CODE,
                                  data="code"),
    "LoRA, r 128": question.Variant("lora", (6.25e-4, 1.25e-3, 2.5e-3, 5e-3),
                                    f"--rank 128 {question.ON_CODE}", data="code",
                                    always=(1.25e-3,)),
}


def text(found):
    """At each method's best rate, and what had been forgotten where all have learned as much."""
    tried = {name: compare.at_rates(found, name) for name in VARIANTS}
    level = compare.common_level(tried)
    header = ["what trains", "lr", "loss", "forgotten, nats", f"forgotten at loss {level:.3f}"]
    return compare.markdown(header, [[name, *compare.trade(rates, level)]
                                     for name, rates in tried.items()])


QUESTION = question.Question("frozen", VARIANTS, text=text)

if __name__ == "__main__":
    question.ask(QUESTION)
