"""Continues a prompt with the base model, and with what runs of train.py have made of it.

    python sample.py --adapter out/math-loraga-r8 --prompt "What is 47 plus 86?"
    python sample.py --adapter A --adapter B --prompt "Once" --temperature 0.8 --samples 3
    python sample.py --adapter out/math-loraga-r8      asks for prompts, line by line
"""
import sys

import torch

from data import tasks, tokenizer
from data.files import InputError, command_parser, number, run_command
from huggingface import load_run
from model import GPT
from train import pick_device


def parse_args():
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--adapter", action="append", default=[], metavar="OUT_DIR", help="a run; may be repeated")
    add("--prompt", help="the text to continue; without it, it is asked for")
    add("--temperature", type=number(float, 0), default=0.0, help="0 is greedy decoding (0)")
    add("--top_k", type=number(int, 1), help="sample among the k likeliest tokens only")
    add("--samples", type=number(int, 1), default=1, help="continuations by each model (1)")
    add("--tokens", type=number(int, 1), default=50, help="the length of a continuation (50)")
    add("--whole", action="store_true", help="do not stop at the end of a line")
    add("--seed", type=number(int, 0, 2**32), default=0, help="of the first sample (0)")
    add("--device", default="auto", help="auto, cpu, cuda or mps (auto)")
    return parser.parse_args()


def load_models(directories):
    """The base model and the runs' models -> {name: GPT}, and their tokenizer."""
    runs = {directory: load_run(directory) for directory in directories}
    bases = {settings["init_from"] for _, settings in runs.values()} or {"base"}
    if len(bases) > 1:
        raise InputError(f"--adapter: these runs are of different base models, {sorted(bases)}")
    [base] = bases
    models = {directory: model for directory, (model, _) in runs.items()}
    if base != "scratch":
        models = {"base": GPT.from_pretrained(base), **models}
    return models, tokenizer.load_for(base)


def prompts(args):
    """--prompt, or what is typed, line by line, until an empty line or the end."""
    if args.prompt is not None:
        yield args.prompt
        return
    print("a prompt on each line; an empty line ends", flush=True)
    for line in sys.stdin:
        if not line.strip():
            return
        yield line.rstrip("\n")


def main():
    args = parse_args()
    sys.stdout.reconfigure(errors="replace")  # a terminal may lack a character: print "?"
    if args.prompt == "":
        raise InputError("--prompt is empty: give at least one character")
    device = pick_device(args.device)
    models, encoding = load_models(args.adapter)
    models = {name: model.to(device) for name, model in models.items()}
    width = max(map(len, models)) + 2
    for prompt in prompts(args):
        idx = torch.tensor([encoding.encode_ordinary(prompt)], device=device)
        for name, model in models.items():
            for seed in range(args.seed, args.seed + args.samples):
                out = model.generate(idx, args.tokens, args.temperature, args.top_k, seed)
                text = tasks.decode(encoding, out[0, idx.shape[1]:].tolist())
                answer = text if args.whole else text.partition("\n")[0]
                print(f"{name:{width}}{prompt}{answer if answer.strip() else ' (nothing)'}",
                      flush=True)


if __name__ == "__main__":
    run_command(main)
