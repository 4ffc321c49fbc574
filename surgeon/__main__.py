"""Lets `python -m surgeon` do what `surgeon` does."""

from surgeon.cli import main

if __name__ == "__main__":
    main()
