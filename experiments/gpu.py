"""Records what this project does on a GPU: the tests, every method on `math` beside the CPU, GPT-2's shape.

    python -m experiments.gpu           writes out/gpu/record.md
"""
import contextlib
import io
import statistics
import subprocess
import sys
from pathlib import Path

import torch

import train

OUT = Path("out/gpu")
METHODS = ("full", "lora", "loraplus", "loraga", "riemannian")


def command(*words):
    """Runs a command of this Python -> what it printed, also shown here."""
    print("$ python", *words, flush=True)
    process = subprocess.Popen([sys.executable, *words], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    lines = []
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    return f"\n    $ python {' '.join(words)}\n\n" + "".join(lines) + f"\nexit code {process.wait()}\n"


def losses(method, device, steps):
    """The losses, the exact match and the median milliseconds a step of a run in float32."""
    directory = OUT / f"{method}-{device}-{steps}"
    flags = (f"--method {method} --device {device} --dtype float32 --steps {steps} --warmup 20 "
             f"--overwrite --out_dir {directory}")
    with contextlib.redirect_stdout(io.StringIO()):
        result = train.train(train.parse_args(flags.split()))
    log = train.load_file(directory / "ckpt.pt")["progress"]["log"]
    return [row[1] for row in log], result["metric_after"], statistics.median(row[3] for row in log)


def main():
    if not torch.cuda.is_available():
        sys.exit("experiments.gpu needs a GPU that torch.cuda finds; there is none")
    record = [f"# {torch.cuda.get_device_name()}, torch {torch.__version__}\n"]
    record.append("\n| method | largest difference from the CPU in the first 5 losses | exact match "
                  "| ms/step | peak memory |\n|---|---|---|---|---|\n")
    for method in METHODS:
        here, there = (losses(method, device, 25)[0][:5] for device in ("cuda", "cpu"))
        torch.cuda.reset_peak_memory_stats()
        _, match, ms = losses(method, "cuda", 600)
        apart = max(abs(a - b) for a, b in zip(here, there))
        record.append(f"| {method} | {apart:.1e} | {match:.1%} | {ms:.1f} | "
                      f"{torch.cuda.max_memory_allocated() / 1e6:.0f} MB |\n")
        print(record[-1], end="", flush=True)
    record.append(command("-m", "pytest", "-q"))
    gpu = ("--device", "cuda", "--dtypes", "bfloat16", "--shapes", "gpt2", "gpt2-xl")
    for words in (("steps", "memory", "preconditioner", *gpu), ("steps", *gpu, "--compile")):
        record.append(command("-m", "experiments.bench", *words))
    with train.replace_file(OUT / "record.md") as file:
        file.write("".join(record).encode())
    print(f"wrote {OUT / 'record.md'}")


if __name__ == "__main__":
    main()
