"""The packages of the wheel; everything else about it is in pyproject.toml.

`configs` and `launch` are at the top of the repository. In the wheel they are in the package `awtpn`, so that
it installs nothing but `awtpn` and `shards`.
"""

from setuptools import find_packages, setup

SHARED = {
    "awtpn.share.configs": "configs",
    "awtpn.share.configs.accelerate": "configs/accelerate",
    "awtpn.share.configs.deepspeed": "configs/deepspeed",
    "awtpn.share.launch": "launch",
}

setup(packages=[*find_packages(include=["awtpn*", "shards*"]), *SHARED], package_dir=SHARED)
