"""SmolLM2 on E2E NLG: what a step costs, LoRA beside Hugging Face's PEFT, LoRA-GA's first step.

    python -m experiments.llm_measure costs    seconds a step and memory of each method
    python -m experiments.llm_measure peft     LoRA here and in PEFT: losses, time, memory
    python -m experiments.llm_measure cosines  how well LoRA-GA's first step follows the gradient

The first two need a machine that does nothing else. experiments.llm says what to install.
"""
import copy
import statistics
import time
from dataclasses import dataclass

import torch

import lora
from data.files import command_parser, number, run_command, write_csv
from experiments import bench, claims, llm, smollm

# ==== Costs: time, memory, PEFT beside it =========================================================


def costs(args, base, task):
    """Seconds a step and peak memory of each method, to results/llm_costs.csv.

    The memory is what a run adds to the process: its copy of the model, optimizer, activations.
    """
    rows = []
    for method in llm.METHODS:
        options = llm.parse_args(["--method", method, "--seed", str(args.seed)])
        before = bench.reset_peak()
        model, optimizer = smollm.start(options, base, task)
        rates = [group["lr"] for group in optimizer.param_groups]
        seconds = []
        for step in range(10):
            batch = smollm.draw_batch(task, args.seed, step)
            started = time.perf_counter()
            smollm.train_step(method, model, optimizer, rates, 1.0, batch)
            seconds.append(time.perf_counter() - started)
        rows.append({"method": method, "seconds_per_step": f"{statistics.median(seconds):.2f}",
                     "peak_mib": round((bench.resident("VmHWM") - before) / 2**20)})
        print(rows[-1], flush=True)
        del model, optimizer
    write_csv(llm.RESULTS / "llm_costs.csv", list(rows[0]), rows)


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

    def step(self, scale, batch):
        started = time.perf_counter()
        loss = smollm.train_step("lora", self.model, self.optimizer, [self.lr], scale, batch)
        self.seconds.append(time.perf_counter() - started)
        self.losses.append(loss)


def saved_mib(model, batch):
    """MiB that the forward pass keeps for the backward pass, without the parameters."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = smollm.loss_of(model, batch)  # while it lives, so do the saved tensors
    del loss
    return sum(sizes.values()) / 2**20


def peft_ratios(args, base, task):
    """LoRA here and in PEFT from the same A, on the same batches, in turns; prints the ratios."""
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
        batch = smollm.draw_batch(task, args.seed, 0)
        for unit, here, there in (
                ("s a step", *(statistics.median(each.seconds) for each in (ours, theirs))),
                ("MiB kept for backward",
                 *(saved_mib(each.model, batch) for each in (ours, theirs)))):
            print(f"    {here:.2f} {unit}, {here / there:.2f} of PEFT's {there:.2f}", flush=True)


# ==== LoRA-GA's first step ========================================================================


def cosines(args, base, task):
    """The cosine of a first step of gradient descent with −G: LoRA-GA, the best of rank 2r, LoRA.

    Medians over the layers, for 4 batches of training rows. Writes results/llm_cosines.csv.
    """
    model = lora.apply_lora(copy.deepcopy(base), smollm.RANK, targets=smollm.TARGETS)
    batches = [smollm.draw_batch(task, args.seed, step) for step in range(smollm.GA_BATCHES)]
    gradients = lora.summed_gradients(model, batches, smollm.loss_of).values()
    spectra = [torch.linalg.svdvals(G) for G in gradients]
    torch.manual_seed(args.seed)
    rows = []
    for rank in claims.RANKS:
        found = {"lora_ga": [], "best": [], "lora": []}
        for G, S in zip(gradients, spectra):
            ga = lora.lora_ga_factors(G, rank)
            found["lora_ga"].append(claims.cosine_of_first_step(G, *ga))
            found["best"].append((S[:2 * rank].norm() / S.norm()).item())
            A = torch.nn.init.kaiming_uniform_(torch.empty(rank, G.shape[1]), a=5 ** 0.5)
            found["lora"].append(claims.cosine_of_first_step(G, A, G.new_zeros(len(G), rank)))
        medians = {name: f"{statistics.median(cosines):.4f}" for name, cosines in found.items()}
        row = {"rank": rank, **medians}
        print(row, flush=True)
        rows.append(row)
    write_csv(llm.RESULTS / "llm_cosines.csv", list(rows[0]), rows)


# ==== The command =================================================================================

MEASUREMENTS = {"costs": costs, "peft": peft_ratios, "cosines": cosines}


def main():
    parser = command_parser(__doc__, "python -m experiments.llm_measure")
    add = parser.add_argument
    add("what", choices=MEASUREMENTS)
    add("--seed", type=number(int, 0), default=0, help="of the batches and of A")
    add("--steps", type=number(int, 1), default=50, help="steps of peft")
    args = parser.parse_args()
    smollm.need(*smollm.PACKAGES)
    base, tokenizer = smollm.load_base()
    MEASUREMENTS[args.what](args, base, smollm.load_task(tokenizer))


if __name__ == "__main__":
    run_command(main)
