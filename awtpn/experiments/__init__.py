"""Many runs as one experiment: folds, seeds, sweeps, ablations, comparisons; resumable, shared by processes.

- `command_line`: what the commands of many runs have in common
- `crossvalidation`: every fold with every seed, and the table
- `ablation`: variants beside the base; `variants`: a line of their file -> the variants that it stands for
- `comparison/`: several models on several datasets, and the report
- `sweep`: settings chosen for each fold without its test utterances
- `baseline`: linear models of the same utterances; `linear_models`: how one is fitted and its penalty chosen;
  `pooled`: utterances as rows of features
- `scores`: metrics of many runs by task, their means, and which direction is better
- `folds`: values of a metadata column -> train, validation and test utterances of each run
- `runner`: starts runs, resumes them, shares them between processes; `run_names`: names of run folders
- `home`: a local folder or a URL for all of them
"""
