"""What wraps the model: nothing, DDP or `deepspeed`; one module per engine."""
