"""Continues a prompt with the base model, and with what runs of train.py have made of it.

    python sample.py --adapter out/math-loraga-r8 --prompt "What is 47 plus 86?"
    python sample.py --adapter A --adapter B --prompt "Once" --temperature 0.8 --samples 3
    python sample.py --adapter out/math-loraga-r8      asks for prompts, line by line
"""
import argparse

import torch

from data import tokenizer
from data.files import InputError
from runs import load_base, load_run, model_of, number, pick_device, print_anywhere


def pieces(encoding, tokens):
    """The text of tokens as they come; bytes that do not yet make a character wait for its rest."""
    waiting = b""
    for token in tokens:
        if token < encoding.n_vocab:
            waiting += encoding.decode_single_token_bytes(token)
        try:
            yield waiting.decode()
            waiting = b""
        except UnicodeDecodeError as error:
            if error.end < len(waiting) or len(waiting) > 3:  # it will never make one
                yield waiting.decode(errors="replace")
                waiting = b""


def prompts(args):
    """--prompt, or what is typed, line by line, until an empty line or the end."""
    if args.prompt is not None:
        yield args.prompt
        return
    while True:
        try:
            line = input("prompt (empty to end): ")
        except EOFError:
            print()
            return
        if not line:
            return
        yield line


def answer(model, encoding, prompt, args, seed):
    """Prints a continuation of the prompt, piece by piece."""
    tokens = torch.tensor([encoding.encode_ordinary(prompt)], device=args.device)
    stream = model.stream(tokens, args.tokens, args.temperature, args.top_k, seed)
    for piece in pieces(encoding, (token.item() for token in stream)):
        print(piece if args.whole else piece.partition("\n")[0], end="", flush=True)
        if "\n" in piece and not args.whole:
            break
    print()


def run(args):
    if args.prompt == "":
        raise InputError("--prompt is empty: give at least one character")
    runs = {directory: load_run(directory) for directory in args.adapter}
    starts = {settings["init_from"] for settings, _ in runs.values()} or {None}
    if len(starts) > 1:
        names = " and ".join(str(start or "the shipped one") for start in starts)
        raise InputError(f"--adapter: these runs are of different base models, {names}")
    [init_from] = starts
    args.device = pick_device(args.device)
    encoding = tokenizer.load_for(init_from)
    models = {"base": load_base(init_from)}
    for directory, (_, state) in runs.items():
        models[directory] = model_of(state, load_base(init_from))
    width = max(map(len, models)) + 2
    for prompt in prompts(args):
        for name, model in models.items():
            model.to(args.device)
            for seed in range(args.seed, args.seed + args.samples):
                print(f"{name:{width}}{prompt}", end="", flush=True)
                answer(model, encoding, prompt, args, seed)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: parser.exit(2, f"sample.py: {message}\n")
    add = parser.add_argument
    add("--adapter", action="append", default=[], metavar="OUT_DIR", help="a run; may be repeated")
    add("--prompt", help="the text to continue; without it, it is asked for")
    add("--temperature", type=number(float, 0), default=0.0, help="0 takes the likeliest token (0)")
    add("--top_k", type=number(int, 1), help="sample among the k likeliest tokens only")
    add("--samples", type=number(int, 1), default=1, help="continuations by each model (1)")
    add("--tokens", type=number(int, 1), default=50, help="the length of a continuation (50)")
    add("--whole", action="store_true", help="do not stop at the end of a line")
    add("--seed", type=number(int, 0, 2 ** 32), default=0,
        help="of the first sample; the next count up (0)")
    add("--device", default="auto", help="auto, cpu, cuda or mps (auto)")
    print_anywhere()
    try:
        run(parser.parse_args())
    except (InputError, OSError) as error:
        parser.error(error)
    except KeyboardInterrupt:
        print()


if __name__ == "__main__":
    main()
