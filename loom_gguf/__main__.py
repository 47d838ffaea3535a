"""`python -m loom_gguf` is `loom-gguf`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
