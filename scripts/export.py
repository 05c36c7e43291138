"""Export a model to other runtimes. See --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sr_distill.cli.export import entry

if __name__ == "__main__":
    sys.exit(entry())
