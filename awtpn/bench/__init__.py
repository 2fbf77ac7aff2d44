"""`awtpn bench`: how fast this machine reads and trains, and where time and memory go.

- `machine`: what is measured on, memory counters, Markdown tables
- `loader`: utterances/s of the stream beside a bare loop and other libraries, which `readers` wraps
- `step`: forward, losses, backward and update; `published_step`: the published code's padded step, beside it
- `end_to_end`: the trainer's loop with its stream; `attention`: the forms of the reliability attention
- `roofline_account`: FLOPs and bytes of each part against the device's measured peaks
- `memory_estimate`: peak memory of a rank by arithmetic; `memory_table`: `awtpn doctor --memory`
"""
