"""Trains on `math` with the method of an exercise: your answers, or the solution.

    python -m exercises.train ex11
    python -m exercises.train ex11 --lr 1e-3 --steps 300
    python -m exercises.train ex08 --set EVERY=100    changes a constant of that file

Takes train.py's flags as well, except those that the exercise decides: the method, the adapter's
other than --rank, --betas and --weight_decay. The part of an exercise's file after "How it trains"
may define three functions; for one that is missing, LoRA's is used:

    adapt(model, rank)                   freezes the base and adds what trains
    optimizer(model, lr)                 -> a torch.optim.Optimizer
    after_step(model, optimizer, step)   is called after each step; step counts from 1
"""
import ast
from pathlib import Path

import torch

import lora
import train
from data.files import InputError, about_input, command_parser, run_command
from exercises.tests.answers import Failure, functions_to_write, load
from model import GPT

HERE = Path(__file__).parent
SOLUTIONS = HERE / "solutions"
DECIDED = ("method", *train.ADAPTER_FLAGS, "betas", "weight_decay")  # by the exercise, but --rank


def adapt(model, rank):
    lora.apply_lora(model, rank)


def optimizer(model, lr):
    return torch.optim.AdamW(lora.lora_plus_groups(model, lr, 1.0), betas=(0.9, 0.95),
                             weight_decay=0.0)


def after_step(model, optimizer, step):
    pass


def find(name):
    """The path of the exercise whose file begins with a name."""
    found = [path for path in sorted(HERE.glob("ex*.py")) if path.stem.startswith(name)]
    if len(found) != 1:
        known = ", ".join(path.stem for path in sorted(HERE.glob("ex*.py")))
        raise InputError(f"there is no one exercise {name}: there are {known}")
    return found[0]


def load_exercise(name, solutions=False):
    """The module of an exercise with the three functions; InputError if it is not written yet."""
    path = find(name)
    try:
        module = load(path, SOLUTIONS / f"{path.stem[:4]}.py" if solutions else None)
    except Failure as failure:
        raise InputError(f"{path.stem}: the import {failure}") from None
    missing = functions_to_write(path)
    if missing and not solutions:
        raise InputError(f"{path.stem}: {missing[0]} is not written yet")
    own = [function for function in (adapt, optimizer, after_step)
           if hasattr(module, function.__name__)]
    if not own:
        raise InputError(f"{path.stem} has nothing to train: try ex06 and those after it")
    for function in {adapt, optimizer, after_step} - set(own):
        setattr(module, function.__name__, function)
    return module


def parse_flags(name, flags):
    """train.py's flags for an exercise; InputError for one that the exercise decides."""
    args = train.parse_args(["--out_dir", f"out/{name}", *flags])
    usual = train.parse_args(["--rank", str(args.rank)])
    for flag in DECIDED:
        if getattr(args, flag) != getattr(usual, flag):
            raise InputError(f"--{flag} {getattr(args, flag)} would change nothing: the exercise "
                             "decides it")
    if args.resume:
        raise InputError("--resume cannot go on with an exercise, whose checkpoints do not hold "
                         "everything: --overwrite starts again")
    return args


def set_constant(exercise, assignment):
    """NAME=VALUE, for a constant in capitals that the exercise's file has."""
    name, _, value = assignment.partition("=")
    allowed = [each for each in vars(exercise) if each.isupper()]
    if name not in allowed:
        raise InputError(f"--set {assignment}: {exercise.__name__} has no constant {name}, but "
                         f"{', '.join(allowed) or 'none'}")
    try:
        value = ast.literal_eval(value)
    except (SyntaxError, ValueError):
        pass  # a word
    setattr(exercise, name, value)


def run(exercise, args):
    """Trains with the exercise's functions in the place of train.py's -> its result."""
    def build_model(args, device):
        with about_input("--init_from"):
            model = GPT.from_pretrained(args.init_from, args.model_dropout)
        exercise.adapt(model, args.rank)
        return model.to(device)

    def build_optimizer(args, model):
        return exercise.optimizer(model, args.lr)

    def after_step(model, optimizer, step):
        torch.manual_seed(args.seed * 1_000_000 + step - 1)  # all processes draw the same numbers
        exercise.after_step(model, optimizer, step)

    return train.train(args, build_model, build_optimizer, after_step=after_step)


def main():
    parser = command_parser(__doc__, "python -m exercises.train")
    parser.add_argument("exercise", help="ex06 to ex17, or the file's whole name")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE",
                        help="a constant in capitals of the exercise's file")
    if SOLUTIONS.is_dir():  # a student's copy has none
        parser.add_argument("--solutions", action="store_true", help="train with the solution")
    mine, flags = parser.parse_known_args()
    solutions = getattr(mine, "solutions", False)

    exercise = load_exercise(mine.exercise, solutions)
    for assignment in mine.set:
        set_constant(exercise, assignment)
    args = parse_flags(exercise.__name__, flags)
    whose = "the solution" if solutions else "your answers"
    print(f"{exercise.__name__}, {whose}; train.py calls this method lora:")
    run(exercise, args)
    print(f"  compare {args.out_dir}/log.csv with that of python train.py --method lora")
    print("  try other --lr: each method has its own best")


if __name__ == "__main__":
    run_command(main)
