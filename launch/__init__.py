"""Entry points for the launchers: `accelerate launch`, `deepspeed`, `torchrun` and plain `python`."""
