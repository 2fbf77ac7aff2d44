"""Scripts that launchers start: `accelerate launch`, `deepspeed`, `torchrun` and plain `python`.

- `train.py`: `awtpn train`, one run, on any number of ranks
- `evaluate.py`: `awtpn evaluate`, a trained model on a split, on any number of ranks
- `cross_validate.py`, `ablate.py`: `awtpn cross-validate`, `awtpn ablate`, many runs
- `slurm.sbatch`, `kubernetes.yaml`: start `train.py` on a cluster, stop it, and start it again

Start a script by its path, from any directory; the package need not be installed. Recipes: `README.md` beside
this file.
"""
