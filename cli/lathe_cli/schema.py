"""`lathe schema KIND`: JSON Schema of a kind, for editors."""

import json
import sys

from lathe_api.errors import UnknownKindError
from lathe_api.schema import json_schema


def run_schema(kind: str) -> int:
    """Print the schema of a kind (name or short name) as JSON; the exit code."""
    try:
        schema = json_schema(kind)
    except UnknownKindError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(schema, indent=2, ensure_ascii=False))
    return 0
