"""Continues a prompt with the base model, and with what runs of train.py have made of it.

    python sample.py --adapter out/math-loraga-r8 --prompt "What is 47 plus 86?"
    python sample.py --adapter A --adapter B --prompt "Once" --temperature 0.8 --samples 3 --tokens 100
"""
import argparse
import json
from pathlib import Path

import torch

import lora
from data import base, tokenizer
from data.files import load_file
from train import WITHOUT_ADAPTER, number, pick_device


def load_run(directory):
    """A finished run's settings, and its adapter or whole model; ValueError if missing or damaged."""
    try:
        settings = json.loads((Path(directory) / "result.json").read_text(encoding="utf-8"))["settings"]
        weights = "model.pt" if settings["method"] in WITHOUT_ADAPTER else "adapter.pt"
        return {"init_from": None, **settings}, load_file(Path(directory) / weights)
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{directory} holds no finished run, or a damaged one") from None


def model_of(state, model):
    """The model of a run: its adapter on the base `model`, in place, or the whole one that it trained."""
    return base.build(state) if "config" in state else lora.load_adapter(model, state)


def pieces(encoding, tokens):
    """The text of tokens as they come; bytes that do not yet make a character wait for the rest of it."""
    waiting = b""
    for token in tokens:
        waiting += encoding.decode_single_token_bytes(token) if token < encoding.n_vocab else b""
        try:
            yield waiting.decode()
            waiting = b""
        except UnicodeDecodeError as error:
            if error.end < len(waiting) or len(waiting) > 3:  # it will never make one
                yield waiting.decode(errors="replace")
                waiting = b""


def answer(model, encoding, args, seed):
    """Prints a continuation of the prompt, piece by piece."""
    prompt = torch.tensor([encoding.encode_ordinary(args.prompt)], device=args.device)
    stream = model.stream(prompt, args.tokens, args.temperature, args.top_k, seed)
    for piece in pieces(encoding, (token.item() for token in stream)):
        print(piece if args.whole else piece.partition("\n")[0], end="", flush=True)
        if "\n" in piece and not args.whole:
            break
    print()


def run(args):
    runs = {directory: load_run(directory) for directory in args.adapter}
    starts = {settings["init_from"] for settings, _ in runs.values()} or {None}
    if len(starts) > 1:
        raise ValueError(f"--adapter: these are of different base models, {' and '.join(map(str, starts))}")
    [init_from] = starts
    args.device = pick_device(args.device)
    encoding = tokenizer.load("gpt2" if init_from else "nanolora")
    if not args.prompt:
        raise ValueError("--prompt is empty: give at least one character")
    start = base.load(init_from)
    width = max(len(name) for name in ("base", *runs)) + 2
    for name in ("base", *runs):
        model = start if name == "base" else model_of(runs[name][1], start)
        model.to(args.device)
        for seed in range(args.seed, args.seed + args.samples):
            print(f"{name:{width}}{args.prompt}", end="", flush=True)
            answer(model, encoding, args, seed)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: parser.exit(2, f"sample.py: {message}\n")
    count, natural = number(int, 1), number(int, 0)
    parser.add_argument("--adapter", action="append", default=[], metavar="OUT_DIR", help="a run; may be repeated")
    parser.add_argument("--prompt", required=True, help="the text to continue")
    parser.add_argument("--temperature", type=number(float, 0), default=0.0, help="0 takes the likeliest token (0)")
    parser.add_argument("--top_k", type=count, help="sample among the k likeliest tokens only")
    parser.add_argument("--samples", type=count, default=1, help="continuations by each model (1)")
    parser.add_argument("--tokens", type=count, default=50, help="the length of a continuation (50)")
    parser.add_argument("--whole", action="store_true", help="do not stop at the end of a line")
    parser.add_argument("--seed", type=natural, default=0, help="of the first sample; the next ones count up (0)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (auto)")
    try:
        run(parser.parse_args())
    except (ValueError, OSError) as error:
        parser.error(error)
    except KeyboardInterrupt:
        print()


if __name__ == "__main__":
    main()
