"""Answers in a process of their own: what they do to it, or how long they take, hurts nobody.

The grader keeps the tests, and asks for one call at a time. Both ways go only tensors, numbers,
text, and lists and dicts of them, which torch.load reads with weights_only.
"""
import contextlib
import copy
import importlib.util
import inspect
import io
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import torch

SECONDS = int(os.environ.get("SECONDS_FOR_A_CALL", 20))  # the import of the answers counts
LARGEST_FILE = 10 ** 7  # bytes that answers may write


class Failure(Exception):
    """What an answer raised, in one sentence."""


def send(stream, message):
    data = io.BytesIO()
    torch.save(message, data)
    stream.write(struct.pack("<Q", data.tell()) + data.getvalue())
    stream.flush()


def receive(stream):
    head = stream.read(8)
    if len(head) < 8:
        raise EOFError
    [size] = struct.unpack("<Q", head)
    return torch.load(io.BytesIO(stream.read(size)), weights_only=True)


class Worker:
    """The functions of a file, run by another process; killed when one takes too long."""

    def __init__(self, path):
        self.path = path
        self.slow = set()  # functions that are not asked again

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.kill()

    def kill(self):
        """The process, and what it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def start(self):
        root = Path(__file__).parents[1]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "exercises.worker", str(self.path)], cwd=root,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True)
        receive(self.process.stdout)  # torch is there: from here on the time counts

    def call(self, function, inputs):
        """The result; NotImplementedError for a stub, Failure for what else goes wrong."""
        if function in self.slow:
            raise Failure(f"took more than {SECONDS} s before, and is not tried again")
        try:
            send(self.process.stdin, {"function": function, "inputs": list(inputs)})
            if not select.select([self.process.stdout], [], [], SECONDS)[0]:
                raise TimeoutError
            answer = receive(self.process.stdout)
        except TimeoutError:
            self.slow.add(function)
            answer = {"failure": f"took more than {SECONDS} s"}
            self.kill()
            self.start()
        except (EOFError, OSError):
            answer = {"failure": "ended the process that it ran in"}
            self.kill()
            self.start()
        if "stub" in answer:
            raise NotImplementedError
        if "failure" in answer:
            raise Failure(answer["failure"])
        return answer["result"]


def load(path):
    """A file as a module; Failure if it cannot be imported."""
    specification = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(specification)
    try:
        specification.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise Failure(f"cannot be imported: {told(error, path)}") from None
    return module


def call(module, function, inputs):
    """The result of a module's function; NotImplementedError for a stub, Failure for the rest."""
    try:
        with torch.no_grad():  # as in training, which calls answers between its steps
            result = getattr(module, function)(*inputs)
    except NotImplementedError:
        raise
    except (Exception, SystemExit) as error:
        if not hasattr(module, function):
            raise NotImplementedError from None
        raise Failure(f"raised {told(error, module.__file__)}") from None
    if result is None:
        raise Failure("returned nothing: is a `return` missing?")
    return result


def told(error, path):
    """An error, with the line of the student's file."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
             if frame.filename == str(path)]
    where = getattr(error, "lineno", None) or (lines[-1] if lines else "?")
    return f"{type(error).__name__}: {error} (line {where})"


def alike(left, right):
    """Whether two values, tensors or dicts or lists of them, are equal to the last bit."""
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and left.equal(right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(alike(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(alike, left, right))
    return left == right


def careful_call(module, function, inputs):
    """As `call`, which must leave its inputs as they are: the grader would not see it from afar."""
    before = copy.deepcopy(inputs)
    result = plain(call(module, function, inputs))
    names = list(inspect.signature(getattr(module, function)).parameters)
    for name, mine, was in zip(names, inputs, before):
        if not alike(was, mine):
            raise Failure(f"changes {name} in place")
    return result


def plain(value):
    """Tuples as lists, tensors without their history, so that they can be sent."""
    if isinstance(value, torch.Tensor):
        return value.detach().contiguous().clone()
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return value


def end_with(parent):
    """Ends this process, and what it has started, when the grader is no more."""
    while os.getppid() == parent:
        time.sleep(1)
    os.killpg(0, signal.SIGKILL)


def serve(path):
    """Answers calls until the other side is gone. What the file prints goes nowhere."""
    import resource  # which Windows lacks

    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
    send(answers, {"ready": True})
    module = None
    while True:
        try:
            request = receive(requests)
        except EOFError:
            return
        try:
            module = module or load(path)
            result = careful_call(module, request["function"], request["inputs"])
            send(answers, {"result": result})
        except NotImplementedError:
            send(answers, {"stub": True})
        except Failure as failure:
            send(answers, {"failure": str(failure)})
        except BaseException as error:
            send(answers, {"failure": f"returned what cannot be read: {type(error).__name__}"})


if __name__ == "__main__":
    serve(sys.argv[1])
