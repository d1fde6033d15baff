"""``python -m fpgrad``: the command line without its script."""

from fpgrad.cli import main

if __name__ == "__main__":
    main()
