"""`python -m awtpn.cli`, for launchers that start modules."""

from awtpn.cli import main

if __name__ == "__main__":
    main()
