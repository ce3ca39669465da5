"""`python -m drifting` is `drifting`."""

from drifting.cli import main

if __name__ == "__main__":
    main()
