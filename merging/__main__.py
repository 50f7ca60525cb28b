"""`python -m merging COMMAND`: the same as `merging COMMAND`."""

import sys

from merging.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
