"""Runs answers in a process of their own: whatever they do, the grader goes on.

The grader keeps the tests and asks for one call at a time. Only tensors, numbers, text, lists and
dicts pass between the two, and torch.load reads them with weights_only. The processes are forked
from one that has nothing but torch in its memory (multiprocessing's forkserver).
"""
import contextlib
import io
import multiprocessing
import os
import pickle
import signal
import threading
import time

import torch

from exercises.tests.answers import Failure, call, load

CALL_SECONDS = float(os.environ.get("SECONDS_FOR_A_CALL", 20))
EXERCISE_SECONDS = float(os.environ.get("SECONDS_FOR_AN_EXERCISE", 120))
START_SECONDS = 300  # to import torch on a busy machine, before any answer runs
LARGEST_FILE = 10 ** 7  # bytes that answers may write
LARGEST_MESSAGE = 10 ** 8  # bytes that a result may have


def send(connection, message):
    data = io.BytesIO()
    torch.save(message, data)
    connection.send_bytes(data.getvalue())


def receive(connection):
    """The next message; EOFError or OSError if the other side is gone or sends something else."""
    data = io.BytesIO(connection.recv_bytes(LARGEST_MESSAGE))
    try:
        return torch.load(data, weights_only=True)
    except (RuntimeError, ValueError, pickle.UnpicklingError):
        raise EOFError from None


class Worker:
    """A process that holds the answers of one file. It is killed when a call takes too long."""

    def __init__(self, path, solution=None):
        self.files = path, solution
        self.slow = set()  # functions that are not called again
        self.used = 0.0  # seconds, by all calls together
        self.process = None

    def start(self):
        """Starts the process, or starts it again: what the answers have kept is gone."""
        self.kill()
        context = multiprocessing.get_context("forkserver")  # which Windows lacks
        context.set_forkserver_preload(["torch", "torch.utils.flop_counter"])
        self.connection, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, *self.files), daemon=True)
        self.process.start()
        other.close()
        self.answer(START_SECONDS)  # torch is imported: from here on the time counts
        self.problem = self.answer(CALL_SECONDS).get("problem")  # of the import, if there is one

    def kill(self):
        """Ends the process and all that it has started."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.kill()
            self.process.join()

    def answer(self, seconds):
        """The process's next message, or what went wrong; after `seconds` the process is killed."""
        late = threading.Event()

        def stop():
            late.set()
            self.kill()

        timer = threading.Timer(seconds, stop)
        timer.start()
        try:
            return receive(self.connection)
        except (EOFError, OSError):
            problem = "ended the process that it ran in"
            if late.is_set():
                problem = f"took more than {seconds:g} s"
            return {"problem": problem, "died": True, "late": late.is_set()}
        finally:
            timer.cancel()

    def call(self, function, inputs, count_flops=False):
        """As answers.call, in the process."""
        if self.problem:
            raise Failure(f"was not called: the import {self.problem}")
        if function in self.slow:
            raise Failure("took too long before and is not called again")
        if self.used > EXERCISE_SECONDS:
            raise Failure(f"was not called: this exercise has used its {EXERCISE_SECONDS:g} s")
        start = time.perf_counter()
        with contextlib.suppress(OSError):  # the process is gone, which `answer` will find
            send(self.connection, [function, list(inputs), count_flops])
        answer = self.answer(CALL_SECONDS)
        self.used += time.perf_counter() - start
        if "died" in answer:
            if answer["late"]:
                self.slow.add(function)
            self.start()
        if "stub" in answer:
            raise NotImplementedError
        if "problem" in answer:
            raise Failure(answer["problem"])
        return answer


def reply(task, *arguments):
    """A message that says what a task returned, or why it failed."""
    try:
        return task(*arguments)
    except NotImplementedError:
        return {"stub": True}
    except Failure as failure:
        return {"problem": str(failure)}


def end_with_grader():
    multiprocessing.parent_process().join()
    os.killpg(0, signal.SIGKILL)


def serve(connection, path, solution):
    """Loads the answers, then calls them until the grader is gone. What they print is dropped."""
    import resource  # which Windows lacks

    os.setsid()  # a group of processes of its own, to be killed together
    threading.Thread(target=end_with_grader, daemon=True).start()
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
    send(connection, {})
    modules = []

    def load_answers():
        modules.append(load(path, solution))
        return {}

    send(connection, reply(load_answers))
    with contextlib.suppress(EOFError):
        while True:
            request = receive(connection)
            send(connection, reply(call, modules[0], *request))
