"""What only a machine with a GPU can tell: `tests/gpu/run.sh`.

- `session`: runs the parts, each with its time limit, and writes what they say into one Markdown file
- `probe`: which form of attention runs on this machine, and why
- `library_attention`: torch's own attention kernels, to compare ours with
- `transfers`: copies to the device, and the share of the bus that training takes
- `staging`: copies of the model's state to the host, for checkpoints
"""
