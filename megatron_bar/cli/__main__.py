"""`python -m megatron_bar.cli` is `megatron-bar`."""

import sys

from megatron_bar.cli import main

if __name__ == "__main__":
    sys.exit(main())
