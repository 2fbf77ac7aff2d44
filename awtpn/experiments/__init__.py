"""Many runs as one: folds, seeds, sweeps and ablations, resumable and shared between processes."""
