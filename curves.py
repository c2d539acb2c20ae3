"""The former name of experiments/plot.py."""
from experiments.plot import *  # noqa: F401, F403
