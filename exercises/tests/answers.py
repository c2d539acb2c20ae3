"""Loads a file of answers and calls its functions, for the graders and for exercises.train."""
import ast
import contextlib
import copy
import inspect
import random
import traceback
import types
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode


class Failure(Exception):
    """What is wrong with an answer, in one sentence."""


def load(path, solution=None):
    """A file as a module; with `solution`, the functions of that file replace those of the stub."""
    path = Path(path)
    module = types.ModuleType(path.stem)
    module.__file__ = str(path)
    module.hash = refuse_hash  # in the place of Python's
    for file in (path, solution):
        if file is not None:
            execute(Path(file), module)
    return module


def refuse_hash(value):
    raise ValueError("hash() of a text is another number in every process: it makes no seed")


def execute(path, module):
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    except (Exception, SystemExit) as error:  # a student's file may raise anything
        raise Failure(f"raised {describe(error, path)}") from None


def functions_to_write(path):
    """The names of a file's functions that end in `raise NotImplementedError`."""
    names = []
    for node in ast.parse(Path(path).read_bytes()).body:
        if isinstance(node, ast.FunctionDef) and isinstance(node.body[-1], ast.Raise):
            if ast.unparse(node.body[-1]) == "raise NotImplementedError":
                names.append(node.name)
    return names


def describe(error, path):
    """An error's type and message, with the line of the student's file."""
    text, lines = str(error), []
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename == str(path):
            lines.append(frame.lineno)
    if isinstance(error, SyntaxError):
        text, lines = error.msg, [error.lineno]
    where = f" (line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {text}{where}"


def call(module, name, inputs, count_flops=False):
    """Calls a function of the answers -> a dict of the result and of what else the call did.

    result    tensors, numbers, text, None, and lists and dicts of them
    drew      whether it used the random numbers that everybody shares
    shares    the positions of the inputs whose memory the result uses
    overlaps  whether two entries of the result are one place in memory
    flops     of its products of matrices, if they are to be counted

    NotImplementedError if the function is not written yet; Failure for what else goes wrong. Both
    ways of grading call answers here, so that they give the same points.
    """
    function = getattr(module, name, None)
    if function is None:
        raise NotImplementedError
    before, random_before, seed = copy.deepcopy(inputs), random_state(), torch.initial_seed()
    counter = FlopCounterMode(display=False) if count_flops else contextlib.nullcontext()
    try:
        with torch.no_grad(), counter:  # training, too, calls answers without autograd
            result = function(*inputs)
    except (Exception, SystemExit) as error:  # a student's function may raise anything
        if isinstance(error, NotImplementedError) and not error.args:
            raise
        raise Failure(f"raised {describe(error, module.__file__)}") from None
    if result is None:
        raise Failure("returned nothing: is a `return` missing?")
    for position, (old, new) in enumerate(zip(before, inputs)):
        if not equal(old, new):
            raise Failure(f"changes {parameter(function, position)} in place")
    if torch.initial_seed() != seed:
        raise Failure("seeds torch's random numbers, which everybody shares: make a "
                      "torch.Generator of its own")
    memory = {tensor.untyped_storage().data_ptr() for tensor in tensors_in(result)} - {0}
    return {"result": plain(result), "flops": counter.get_total_flops() if count_flops else None,
            "drew": random_state() != random_before,
            "shares": [position for position, value in enumerate(inputs)
                       if any(tensor.untyped_storage().data_ptr() in memory
                              for tensor in tensors_in(value))],
            "overlaps": overlaps(list(tensors_in(result)))}


def parameter(function, position):
    names = list(inspect.signature(function).parameters)
    return names[position] if position < len(names) else f"input {position + 1}"


def random_state():
    """The state of the random numbers that Python, numpy and torch share."""
    _, keys, position, *_ = np.random.get_state()
    return random.getstate(), keys.tobytes(), position, torch.get_rng_state().numpy().tobytes()


def overlaps(tensors):
    """Whether a tensor repeats an entry, as expand does, or two tensors use the same memory."""
    taken = []
    for tensor in tensors:
        sides = list(zip(tensor.shape, tensor.stride()))
        if any(stride == 0 and size > 1 for size, stride in sides):
            return True
        last = tensor.storage_offset() + sum((size - 1) * stride for size, stride in sides)
        taken.append((tensor.untyped_storage().data_ptr(), tensor.storage_offset(), last))
    taken.sort()
    return any(here[0] == after[0] and after[1] <= here[2] for here, after in zip(taken, taken[1:]))


def tensors_in(value):
    """The tensors in a value, which may be a list or a dict of them."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(each)


def equal(left, right):
    """Whether two values, tensors or lists or dicts of them, are equal to the last bit."""
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and left.dtype == right.dtype and left.equal(right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(equal, left, right))
    return left == right


def plain(value):
    """A result as it can be sent: no tuples, no numpy, tensors that own their memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone(memory_format=torch.contiguous_format)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {plain(key): plain(each) for key, each in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise Failure(f"returned a {type(value).__name__}; a result may hold tensors, numbers, text, "
                  "lists and dicts")
