"""`python -m awtpn.cli`, for launchers that start modules."""

from awtpn.cli import main
from awtpn.config.program import MODULE

if __name__ == "__main__":
    main(program=MODULE)
