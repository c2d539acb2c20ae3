"""Eleven related systems, as the exercises' solutions build them, beside LoRA and full fine-tuning.

Each trains on `math` for 1000 steps at the best of three learning rates. Those whose parameters are
of another kind than LoRA's factors have rates of their own.
"""
from experiments import compare, question

PAGE = question.DETAILS.parents[1] / "exercises" / "README.md"
RATES = (2.5e-3, 5e-3, 1e-2)
SYSTEMS = {  # exercise: (name, learning rates, more flags)
    "ex06_serial_adapter": ("serial adapter, m 32", (1e-3, 3e-3, 1e-2), "--rank 32"),
    "ex07_prompt_tuning": ("prompt tuning", (1e-2, 3e-2, 1e-1), "--block_size 96"),
    "ex08_chain_of_lora": ("Chain of LoRA", RATES, ""),
    "ex09_rac_lora": ("RAC-LoRA", (1e-2, 2e-2, 4e-2), ""),
    "ex10_xgblora": ("XGBLoRA", (1e-2, 3e-2, 1e-1), ""),
    "ex11_lora_pro": ("LoRA-Pro", (2e-3, 4e-3, 8e-3), ""),
    "ex12_hetero_lora": ("HeteroLoRA", RATES, ""),
    "ex13_run_lora": ("RunLoRA", RATES, ""),
    "ex14_lora2": ("LoRA²", (*RATES, 2e-2), ""),
    "ex15_res_lora": ("ResLoRA", RATES, ""),
    "ex16_lora_rite": ("LoRA-RITE", (2e-3, 4e-3, 8e-3), ""),
}
VARIANTS = {"LoRA": question.Variant("lora", RATES),
            "full fine-tuning": question.Variant("full", (1.5e-3, 3e-3, 6e-3))}
VARIANTS["LoRA, r 1 in c_attn"] = question.Variant(  # as many numbers as prompt tuning's
    "lora", (5e-3, 1e-2, 2e-2), "--rank 1 --targets c_attn")
VARIANTS |= {name: question.Variant("lora", rates, flags,
                                    module=f"exercises.train {exercise} --solutions")
             for exercise, (name, rates, flags) in SYSTEMS.items()}


def text(found):
    rows = []
    for name in VARIANTS:
        lr, results = compare.best(compare.at_rates(found, name))
        rows.append([name, lr, compare.spread(results, "learned", "{:.1%}"),
                     compare.spread(results, "forgotten", "{:.2f}"),
                     f"{compare.median(results, 'trained'):,.0f}"])
    return compare.markdown(["system", "lr", "exact match", "forgotten, nats", "trained"], rows)


QUESTION = question.Question("systems", VARIANTS, text=text, page=PAGE)

if __name__ == "__main__":
    question.ask(QUESTION)
