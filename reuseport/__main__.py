"""`python -m reuseport`: the same as the console script."""

import sys

from reuseport.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
