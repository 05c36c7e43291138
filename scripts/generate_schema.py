"""Write options/schema.json, with which editors complete and check the YAML files; --check only compares."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sr_distill.files import write_text  # noqa: E402
from sr_distill.options import RunOptions  # noqa: E402


def main() -> int:
    """Write the schema, or with --check exit with 1 where the file is not up to date."""
    path = ROOT / "options" / "schema.json"
    text = json.dumps(RunOptions.model_json_schema(), indent=1) + "\n"
    if "--check" in sys.argv[1:]:
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            print(f"{path} is not up to date: run python scripts/generate_schema.py", file=sys.stderr)
            return 1
        return 0
    write_text(path, text)
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
