"""Draws runs of train.py, finished or not, in one picture.

    python -m experiments.plot out/math-lora-r8 out/math-full
    python -m experiments.plot out/math-* --out figures/mine

writes out/runs.png and out/runs.svg: the training loss, the metric, and what was learned against
what was forgotten, labelled by the settings in which the runs differ.
"""
import argparse
import sys

import curves
from data.files import InputError


def main():
    parser = argparse.ArgumentParser(prog="python -m experiments.plot", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", nargs="+", metavar="OUT_DIR", help="runs of train.py")
    parser.add_argument("--out", default="out/runs", help="the files' path, without .png and .svg")
    args = parser.parse_args()
    try:
        for path in (f"{args.out}.png", f"{args.out}.svg"):
            curves.draw(args.directories, path)
            print(path)
    except (InputError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
