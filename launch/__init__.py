"""Entry points for the launchers: `accelerate launch`, `deepspeed`, `torchrun` and plain `python`.

- `train.py`: one run, on any number of ranks; started by any of the launchers
- `evaluate.py`: a trained model on a split, likewise
- `cross_validate.py`, `ablate.py`: many runs of `train.py`, one after another or side by side
- `slurm.sbatch`, `kubernetes.yaml`: how clusters start `train.py`, stop it, and start it again

Each is run by its path, from anywhere, whether or not the package is installed.
"""
