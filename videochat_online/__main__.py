"""`python -m videochat_online`, and `torchrun -m videochat_online`: the console script."""

import sys

from videochat_online.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
