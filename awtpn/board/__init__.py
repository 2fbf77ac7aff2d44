"""What TensorBoard shows of a run: figures, pictures, the projector, settings."""
