"""Scripts that launchers start: `accelerate launch`, `deepspeed`, `torchrun` and plain `python`.

- `train.py`: train one run, on any number of ranks
- `evaluate.py`: evaluate a trained model on a split, on any number of ranks
- `cross_validate.py`, `ablate.py`: many runs of `train.py`, one after another or in parallel
- `slurm.sbatch`, `kubernetes.yaml`: start `train.py` on a cluster, stop it, and start it again

Start a script by its path, from any directory; the package need not be installed. Recipes: `README.md` beside
this file.
"""
