"""Trains on `math` with the method of an exercise: yours, or the solution.

    python -m exercises.train ex11_lora_pro
    python -m exercises.train ex11_lora_pro --solutions --lr 1e-3 --steps 300
    python -m exercises.train ex08_chain_of_lora --set EVERY=100    a constant of that file

Takes the flags of train.py, but for those of an adapter or an optimizer, which are the exercise's,
and ends with its report. An exercise's file says how it trains, in at most three functions; what it
leaves out is LoRA's:

    adapt(model, rank)                   freezes the base, adds what trains
    optimizer(model, lr)                 -> a torch.optim.Optimizer
    after_step(model, optimizer, step)   called after each step; step counts from 1
"""
import ast
import sys
from pathlib import Path

import torch

import lora
import report
import train
from exercises import worker
from runs import load_base

HERE = Path(__file__).parent


def adapt(model, rank):
    lora.apply_lora(model, rank)


def optimizer(model, lr):
    return torch.optim.AdamW(lora.lora_plus_groups(model, lr, 1.0), betas=(0.9, 0.95),
                             weight_decay=0.0)


def after_step(model, optimizer, step):
    pass


def load(name, solutions):
    """The module of an exercise, with the three functions; ends if it is not written yet."""
    folder = HERE / "solutions" if solutions else HERE
    known = {path.stem: path for path in sorted(folder.glob("ex*.py"))}
    names = [each for each in known if each.startswith(name)]
    if len(names) != 1:
        sys.exit(f"exercises.train: {folder.name}/ has no exercise {name}, but "
                 f"{', '.join(known) or 'none'}")
    [name] = names
    path = known[name]
    try:
        module = worker.load(path)
    except worker.Failure as failure:
        sys.exit(f"exercises.train: {name} {failure}")
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and isinstance(node.body[-1], ast.Raise):
            sys.exit(f"exercises.train: {name}: {node.name} is not written yet")
    if not any(hasattr(module, function.__name__) for function in (adapt, optimizer, after_step)):
        sys.exit(f"exercises.train: {name} trains nothing of its own: try ex06 and those after it")
    for function in (adapt, optimizer, after_step):
        if not hasattr(module, function.__name__):
            setattr(module, function.__name__, function)
    return module


def check(flags):
    """Ends, if a flag is given that the exercise itself decides."""
    args, usual = train.parse_args(flags), train.parse_args([])
    for name in ("method", *train.OF_ADAPTERS, "betas", "weight_decay"):
        if name != "rank" and getattr(args, name) != getattr(usual, name):
            sys.exit(f"exercises.train: --{name} {getattr(args, name)} would change nothing: "
                     "the exercise decides it")


def what_is_next(args, result):
    yield f"compare {args.out_dir}/curves.png with that of python train.py --method lora"
    yield "try other --lr: each method has its own best"


def set_constant(exercise, assignment):
    """NAME=VALUE, for a constant in capitals that the exercise's file has."""
    name, _, value = assignment.partition("=")
    allowed = [each for each in vars(exercise) if each.isupper() and each != "TO_WRITE"]
    if name not in allowed:
        sys.exit(f"exercises.train: --set {assignment}: {exercise.__name__} has no constant "
                 f"{name}, but {', '.join(allowed) or 'none'}")
    try:
        value = ast.literal_eval(value)
    except (SyntaxError, ValueError):
        pass  # a word
    setattr(exercise, name, value)


def install(exercise):
    """Puts the exercise's functions where train.py has its own."""
    plain_step = train.train_step

    def build_model(args, device):
        torch.manual_seed(args.seed)
        model = load_base(args.init_from, args.model_dropout)
        exercise.adapt(model, args.rank)
        return model.to(device)

    def build_optimizer(args, model):
        optimizer = exercise.optimizer(model, args.lr)
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
        return optimizer

    def train_step(args, model, optimizer, batch, step):
        loss = plain_step(args, model, optimizer, batch, step)
        torch.manual_seed(args.seed * 1_000_000 + step)  # all processes are to draw the same
        exercise.after_step(model, optimizer, step + 1)
        return loss

    train.build_model, train.build_optimizer = build_model, build_optimizer
    train.train_step = train_step
    report.what_is_next = what_is_next


def main():
    words = [word for word in sys.argv[1:] if word != "--solutions"]
    if not words or not words[0].startswith("ex"):
        sys.exit(__doc__)
    name, *flags = words
    solutions = "--solutions" in sys.argv
    if "--resume" in flags:  # a checkpoint has not all of what an exercise may do to a model
        sys.exit("exercises.train: --resume is train.py's alone; --overwrite begins again")
    assignments = []
    while "--set" in flags[:-1]:
        where = flags.index("--set")
        assignments.append(flags[where + 1])
        del flags[where:where + 2]
    if "--out_dir" not in flags:
        flags += ["--out_dir", f"out/{name}"]
    check(flags)
    sys.argv = ["train.py", *flags]
    exercise = load(name, solutions)
    for assignment in assignments:
        set_constant(exercise, assignment)
    install(exercise)
    whose = "the solution" if solutions else "your code"
    print(f"{exercise.__name__}, {whose}; train.py calls it lora:")
    train.main()


if __name__ == "__main__":
    main()
