"""`python -m pipelines.cli`: the same as the command `polymuse`."""

from pipelines.cli import main

if __name__ == "__main__":
    main()
