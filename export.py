"""Turns a finished run of train.py into files for the Hugging Face world.

    python export.py peft out/math-loraga-r8    the adapter as PEFT keeps it, to OUT_DIR/peft
    python export.py merged out/math-loraga-r8  a plain GPT-2, adapter folded in, to OUT_DIR/merged
"""
import argparse
from pathlib import Path

from data.files import InputError, about_input
from huggingface import export_peft, merge_and_save
from runs import load_base, load_run, model_of

WRITERS = {"peft": export_peft, "merged": merge_and_save}


def run(args):
    settings, state = load_run(args.out_dir)
    model = model_of(state, load_base(settings["init_from"]))
    directory = args.out_dir / args.what
    with about_input(args.out_dir):
        WRITERS[args.what](model, directory)
    print(f"wrote {directory}")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: parser.exit(2, f"export.py: {message}\n")
    parser.add_argument("what", choices=WRITERS)
    parser.add_argument("out_dir", type=Path, help="a finished run's directory")
    try:
        run(parser.parse_args())
    except (InputError, OSError) as error:
        parser.error(error)


if __name__ == "__main__":
    main()
