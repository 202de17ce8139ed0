"""`python -m cvtrain` and the console script `cvtrain`."""

import sys

from cvtrain.cli.main import main

__all__ = ["main"]

if __name__ == "__main__":
    main(sys.argv[1:])
