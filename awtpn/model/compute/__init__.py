"""What the arithmetic of the network costs, and how exact and fast it is on this machine.

- `flops`: FLOPs of a training step; `matrix_products`: whether matrix products are bit-exact on this machine;
  `cpu_passes`: what is not matrix products, on CPUs, in few passes over memory;
  `attention_triton`: the fused GPU kernels of `awtpn.model.attention`; `dropout`: dropout drawn fast on CPUs
"""
