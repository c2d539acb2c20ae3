"""What follows for practice: one rate for all, betas, combinations, PEFT, related systems."""
import functools

from experiments import compare
from experiments.compare import AROUND, METHODS, NAMES
from experiments.question import Question, Variant, flag
from train import PRESETS

RATE = {method: preset["lr"] for method, preset in PRESETS.items()}  # each method's best on math

# ==== Is one learning rate for all methods fair? ==================================================

SHARED = 1e-3
shared = {NAMES[method]: Variant(method, tuple(sorted({SHARED, RATE[method]})))
          for method in METHODS}


def shared_table(found):
    rows = []
    for method in METHODS:
        rates = compare.at_rates(found, NAMES[method])
        row = [NAMES[method]]
        for lr in (SHARED, RATE[method]):
            row.append(compare.learned(rates[lr]) if lr in rates else "–")
        rows.append(row)
    return compare.markdown(["exact match, %", f"all with {SHARED:g}", "each with its own"], rows)


# ==== Do Adam's betas decide as much as the method? ===============================================

PAIRS = {"0.9 0.999": (0.5, 1, 2, 4), "0.9 0.95": AROUND, "0.7 0.8": (0.25, 0.5, 1, 2)}
EVERY_SEED = {"0.7 0.8": (0.5, 1)}
betas = {
    f"{NAMES[method]}, {pair}": Variant(
        method, tuple(RATE[method] * factor for factor in factors), flag("betas", pair, "0.9 0.95"),
        always=tuple(RATE[method] * factor for factor in EVERY_SEED.get(pair, (1,))))
    for pair, factors in PAIRS.items() for method in METHODS}


def betas_table(found):
    """At the best rate: learned for forgotten; then what was forgotten at 90 %."""
    def at_the_best(tried):
        results = tried[compare.best_rate(tried)]
        return f"{compare.learned(results)} for {compare.median(results, 'forgotten'):.2f}"

    def rows(cell):
        return [[name, *(cell(compare.at_rates(found, f"{name}, {pair}")) for pair in PAIRS)]
                for name in NAMES.values()]

    first = compare.markdown(["exact match, %, for nats forgotten", *PAIRS], rows(at_the_best))
    level = functools.partial(compare.at_level, level=0.9, with_rate=False)
    second = compare.markdown(["forgotten at 90 %", *PAIRS], rows(level))
    return f"{first}\n\n{second}"


# ==== Do the methods add up? ======================================================================

LOWER = (1.25e-4, 2.5e-4, 5e-4, 1e-3)  # B's rate is four times as large
toggles = {  # each method alone is in `tradeoff`
    "LoRA-GA, ratio 4": Variant("loraga", LOWER, "--lr_ratio 4"),
    "LoRA-GA, preconditioned": Variant("loraga", (5e-4, 1e-3, 2e-3), "--precondition"),
    "ratio 4, preconditioned": Variant("riemannian", (1.25e-3, 2.5e-3, 5e-3), "--lr_ratio 4"),
    "all three": Variant("loraga", LOWER, "--precondition --lr_ratio 4"),
}


# ==== Do PEFT's versions end where these do? ======================================================

PEFT_RATES = {"loraga": (0.5, 1, 2, 4), "riemannian": (0.25, 0.5, 1, 2)}
peft = {}  # ours are in `tradeoff`
for method in METHODS[1:]:
    lr = RATE[method]
    tried = tuple(lr * factor for factor in PEFT_RATES.get(method, (1,)))
    peft[f"{NAMES[method]}, PEFT"] = Variant(method, tried, module="experiments.peft_run",
                                             always=(lr,))
peft["preconditioned, here, δ 0.01"] = Variant("riemannian", (RATE["riemannian"],),
                                               "--damping 0.01")


# ==== Eleven related systems, as the solutions of the exercises build them ========================

USUAL = (2.5e-3, 5e-3, 1e-2)
SYSTEMS = {  # exercise: name, learning rates, more flags
    "ex06_serial_adapter": ("serial adapter, m 32", (1e-3, 3e-3, 1e-2), "--rank 32"),
    "ex07_prompt_tuning": ("prompt tuning", (1e-2, 3e-2, 1e-1), "--block_size 96"),
    "ex08_chain_of_lora": ("Chain of LoRA", USUAL, ""),
    "ex09_rac_lora": ("RAC-LoRA", (1e-2, 2e-2, 4e-2), ""),
    "ex10_xgblora": ("XGBLoRA", (1e-2, 3e-2, 1e-1), ""),
    "ex11_lora_pro": ("LoRA-Pro", (2e-3, 4e-3, 8e-3), ""),
    "ex12_hetero_lora": ("HeteroLoRA", USUAL, ""),
    "ex13_run_lora": ("RunLoRA", USUAL, ""),
    "ex14_lora2": ("LoRA²", (*USUAL, 2e-2), ""),
    "ex15_res_lora": ("ResLoRA", USUAL, ""),
    "ex16_lora_rite": ("LoRA-RITE", (2e-3, 4e-3, 8e-3), ""),
}
systems = {"LoRA": Variant("lora", USUAL),
           "full fine-tuning": Variant("full", (1.5e-3, 3e-3, 6e-3)),
           # As many parameters as prompt tuning:
           "LoRA, r 1 in c_attn": Variant("lora", (5e-3, 1e-2, 2e-2), "--rank 1 --targets c_attn")}
systems |= {name: Variant("lora", tried, flags, f"exercises.train {exercise} --solutions")
            for exercise, (name, tried, flags) in SYSTEMS.items()}


def system_table(found):
    return compare.best_table(found, systems, "system", {"trained": compare.trained})


# What do restarts cost? 1000 steps in links of 25 to 200 steps, and in a single link.
CHAINS = {  # exercise, learning rate, its constant, the steps of a link
    "Chain of LoRA": ("ex08_chain_of_lora", 5e-3, "EVERY", (50, 200, 1000)),
    "RAC-LoRA": ("ex09_rac_lora", 2e-2, "EVERY", (50, 200, 1000)),
    "XGBLoRA": ("ex10_xgblora", 3e-2, "ROUND", (25, 100, 1000)),
}
links = {f"{name}, links of {steps}": Variant(
            "lora", (lr,), "", f"exercises.train {exercise} --solutions --set {constant}={steps}")
         for name, (exercise, lr, constant, lengths) in CHAINS.items() for steps in lengths}


# Which of LoRA-RITE's two memories is to be short? M's is β₁, V's is β₂; in `systems` both are.
rite = {f"betas ({betas})": Variant("lora", (4e-3,), "", "exercises.train ex16_lora_rite "
                                    f"--solutions --set BETAS={betas}")
        for betas in ("0.9,0.95", "0.7,0.95")}


QUESTIONS = (
    Question("shared", shared, shared_table, every_rate=True),
    Question("betas", betas, betas_table),
    Question("toggles", toggles, "together"),
    Question("peft", peft, "method"),
    Question("systems", systems, system_table),
    Question("links", links, "system"),
    Question("rite", rite, "LoRA-RITE"),
)
