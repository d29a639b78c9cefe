"""`python -m jaxclip` is the command `jaxclip`."""

import sys

from jaxclip.cli import main

if __name__ == "__main__":
    sys.exit(main())
