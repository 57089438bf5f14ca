"""`python -m vagrant_check`, which scripts/vagrant-check runs."""

import sys

from vagrant_check.options import read_options

if __name__ == "__main__":
    read_options(sys.argv[1:])
    sys.exit(1)
