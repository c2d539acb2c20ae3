"""Checks for the graders: each says which property does not hold, and by how much."""
import pytest
import torch

TIGHT = 1e-10


def holds(condition, property):
    """Fails the test, without a traceback, unless the property holds."""
    if not condition:
        pytest.fail(property, pytrace=False)


def tensor(value, shape, what, dtype=torch.float64):
    """`value`, if it is a tensor of finite numbers of this shape and type."""
    holds(isinstance(value, torch.Tensor), f"{what} must be a tensor, not {type(value).__name__}")
    holds(tuple(value.shape) == tuple(shape),
          f"{what} must have the shape {tuple(shape)}, not {tuple(value.shape)}")
    holds(value.dtype == dtype, f"{what} must be {dtype}, not {value.dtype}: a new tensor takes "
                                "the dtype of the inputs")
    holds(bool(value.isfinite().all()), f"{what} has numbers that are not finite")
    return value


def several(value, count, what):
    """`value`, if it is a list or tuple of `count`."""
    holds(isinstance(value, (list, tuple)) and len(value) == count,
          f"{what} must be {count} values, not {type(value).__name__}"
          + (f" of {len(value)}" if isinstance(value, (list, tuple)) else ""))
    return value


def number(value, what):
    """A number, or a tensor that holds one, as a float64 tensor."""
    scalar = isinstance(value, torch.Tensor) and value.numel() == 1 and value.ndim == 0
    holds(scalar or isinstance(value, (int, float)), f"{what} must be a number, not "
          + (f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor)
             else type(value).__name__))
    return torch.as_tensor(value, dtype=torch.float64)


def same(left, right, property, tolerance=TIGHT):
    """Fails unless two tensors, or two numbers, are equal except for rounding."""
    left, right = (each.double() if isinstance(each, torch.Tensor)
                   else torch.tensor(each, dtype=torch.float64) for each in (left, right))
    holds(left.shape == right.shape, f"{property}: the shapes differ, {tuple(left.shape)} and "
                                     f"{tuple(right.shape)}")
    difference, size = (left - right).norm().item(), right.norm().item()
    if difference <= tolerance * max(size, 1):
        return
    if left.ndim == 0:
        found = f"it is {left.item():.12g}, and must be {right.item():.12g}"
    elif size == 0:
        found = f"its norm is {difference:.2g}, and must be 0"
    else:
        found = f"the difference has the norm {difference:.2g}, and the right value {size:.2g}"
    float32 = "; is something float32?" if difference < 1e-6 * max(size, 1) else ""
    pytest.fail(f"{property}: {found}{float32}", pytrace=False)


def different(left, right, property, least=1e-6):
    distance = (left - right).norm().item()
    holds(distance > least, f"{property}: their difference has the norm {distance:.2g}")
