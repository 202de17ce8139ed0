"""`python -m cvtrain` and the console script `cvtrain`."""

import sys


def main() -> None:
    """Run the command line of this process and exit with its status."""
    from cvtrain.cli import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
