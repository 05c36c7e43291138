"""A page that upscales photos in the browser. See --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sr_distill.cli.web_demo import entry

if __name__ == "__main__":
    sys.exit(entry())
