"""The packages of the wheel; everything else about it is in pyproject.toml.

`configs` and `launch` are at the top of the repository. In the wheel they are in the package `awtpn`, so that
it installs nothing but `awtpn` and `shards`.
"""

import shutil

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

SHARED = {
    "awtpn.share.configs": "configs",
    "awtpn.share.configs.accelerate": "configs/accelerate",
    "awtpn.share.configs.comparison": "configs/comparison",
    "awtpn.share.configs.deepspeed": "configs/deepspeed",
    "awtpn.share.launch": "launch",
}


class CleanBuild(build_py):
    """Copies the modules into an empty folder: what an earlier build left there would be installed, too."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


setup(
    packages=[*find_packages(include=["awtpn*", "shards*"]), *SHARED],
    package_dir=SHARED,
    cmdclass={"build_py": CleanBuild},
)
