"""What the graders say when a property does not hold: which, and by how much."""
import pytest
import torch

TIGHT = 1e-10


def holds(condition, property):
    """Fails the test, without a traceback, unless the property holds."""
    if not condition:
        pytest.fail(property, pytrace=False)


def tensor(value, shape, what):
    """`value`, if it is a tensor of finite numbers in this shape."""
    holds(isinstance(value, torch.Tensor), f"{what} is to be a tensor, not {type(value).__name__}")
    holds(tuple(value.shape) == tuple(shape),
          f"{what} has the shape {tuple(value.shape)} in place of {tuple(shape)}")
    holds(bool(value.isfinite().all()), f"{what} holds numbers that are not finite")
    return value


def same(left, right, property, tolerance=TIGHT):
    """Fails unless two tensors, or numbers, are equal but for rounding."""
    left, right = (torch.as_tensor(each, dtype=None if torch.is_tensor(each) else torch.float64)
                   for each in (left, right))
    holds(left.shape == right.shape, f"{property}: the shapes differ, {tuple(left.shape)} and "
                                     f"{tuple(right.shape)}")
    apart, size = (left.double() - right.double()).norm().item(), right.double().norm().item()
    if left.ndim == 0:
        told = f"it is {left.item():.6g} in place of {right.item():.6g}"
    elif size == 0:
        told = f"the norm of what must be 0 is {apart:.2g}"
    else:
        told = f"the difference has the norm {apart:.2g}, and what it must be {size:.2g}"
    holds(apart <= tolerance * max(size, 1), f"{property}: {told}")


def different(left, right, property, least=1e-6):
    apart = (left - right).norm().item()
    holds(apart > least, f"{property}: apart by {apart:.2g} only")


def untouched(tensors, call, property="the inputs must stay as they are"):
    """call() -> its result; fails if it changes one of the tensors in place."""
    before = [tensor.clone() for tensor in tensors]
    result = call()
    holds(all(torch.equal(*pair) for pair in zip(before, tensors)), property)
    return result
