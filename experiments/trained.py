"""Models that a measurement looks at: trained once and kept in out/trained."""
from concurrent.futures import ThreadPoolExecutor

import huggingface
from data.files import InputError
from experiments import sweep
from experiments.question import Variant
from lora import lora_layers
from model import GPT

FULL, LORA = Variant("full", (3e-3,)), Variant("lora", (5e-3,))
SEEDS = range(3)


def train_all(runs, folder, more, jobs):
    """{key: (variant, seed, flags)} -> {key: directory}; runs that are there are not repeated."""
    def train(variant, seed, flags):
        flags = variant.run(variant.rates[0], seed, f"{flags} {more}")
        directory = folder / sweep.directory_of(flags).name
        if not (directory / "result.json").exists():
            print(f"python train.py {flags}", flush=True)
            if sweep.run(flags, directory, 1)["metric"] == "diverged":
                raise InputError(f"python train.py {flags} diverged")
        return directory

    with ThreadPoolExecutor(jobs) as pool:
        return dict(zip(runs, pool.map(lambda run: train(*run), runs.values())))


def model_of(directory):
    model, _ = huggingface.load_run(directory)
    return model.eval()


def deltas(directory):
    """W0 and ΔW of every adapted layer -> {name: (W0, ΔW)}, float64."""
    base = {name: W.double() for name, W in GPT.from_pretrained().named_parameters()}
    model = model_of(directory)
    if lora_layers(model):
        return {name: (base[f"{name}.weight"], layer.delta().detach().double())
                for name, layer in lora_layers(model).items()}
    return {name.removesuffix(".weight"): (W, model.get_parameter(name).detach().double() - W)
            for name, W in base.items() if W.ndim == 2 and ".h." in name}
