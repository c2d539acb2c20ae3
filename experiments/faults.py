"""kill -9 at ten random moments of a run, then --resume: is the end the undisturbed run's?

    python -m experiments.faults

The run writes a checkpoint after every step, so that many of the kills fall into the writing of
one. The losses and the weights at the end must be the same, bit for bit.
"""
import argparse
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

from data.files import TEMPORARY, load_file

FLAGS = ["--method", "loraga", "--precondition", "--dropout", "0.1", "--steps", "60",
         "--eval_interval", "1", "--device", "cpu"]


def start(directory, *more):
    command = [sys.executable, "train.py", *FLAGS, "--out_dir", str(directory), *more]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def losses(checkpoint):
    return [row["loss"] for row in checkpoint["progress"]["log"][1:]]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    whole, killed = Path("out/faults/whole"), Path("out/faults/killed")
    saved = killed / "ckpt.pt"
    moments = random.Random(args.seed)
    shutil.rmtree("out/faults", ignore_errors=True)
    began = time.perf_counter()
    if start(whole).wait():
        sys.exit("the undisturbed run failed")
    seconds, leftovers = time.perf_counter() - began, 0
    for kill in range(args.kills):
        run = start(killed, *["--resume"] * saved.exists())
        time.sleep(moments.uniform(4, 4 + (seconds - 4) / args.kills * 1.5))
        run.kill()
        error = run.communicate()[1]
        if error:
            sys.exit(f"the run said: {error}")
        leftovers += len(list(killed.glob(f".*{TEMPORARY}")))
        step = load_file(saved)["progress"]["step"] if saved.exists() else 0
        print(f"kill {kill + 1}/{args.kills}: the checkpoint is of step {step}", flush=True)
    error = start(killed, *["--resume"] * saved.exists()).communicate()[1]
    first, second = (load_file(directory / "ckpt.pt") for directory in (whole, killed))
    same = losses(first) == losses(second) and all(
        torch.equal(value, second["model"][name]) for name, value in first["model"].items())
    print(f"{args.kills} kills, {leftovers} half-written files seen and never read; the end is "
          f"{'bit for bit the same' if same else 'DIFFERENT'} {error}")
    sys.exit(not same)


if __name__ == "__main__":
    main()
