"""CycloneDX 1.6 bill of materials of what `uv.lock` installs: `python hack/sbom.py [EXTRA…]` prints JSON.

Specification: ECMA-424. The same lock file gives the same bytes, so that there is no time in it.
"""

import hashlib
import json
import sys
import tomllib
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

LOCK: Final = Path(__file__).parent.parent / "uv.lock"
ROOT: Final = "lathe-platform"

Json = dict[str, Any]


def bill(lock: bytes, extras: Iterable[str]) -> Json:
    """The bill of materials of the project with some of its extras.

    Every package that any platform or Python version would get is listed: the lock file is for all of them.

    Args:
        lock: content of `uv.lock`.
        extras: of the project; those that it does not have raise KeyError.
    """
    # A name may be locked in several versions, for several platforms.
    packages: dict[str, list[Json]] = {}
    for package in tomllib.loads(lock.decode())["package"]:
        packages.setdefault(package["name"], []).append(package)
    (root,) = packages[ROOT]
    needed = _needed(packages, sorted(set(extras)))
    components = [_component(p) for name in sorted(needed) for p in packages[name] if name != ROOT]
    edges = [_edges(p, packages, needed) for name in sorted(needed) for p in packages[name]]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, hashlib.sha256(lock).hexdigest())}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": _reference(root),
                "name": ROOT,
                "version": root["version"],
                "purl": _reference(root),
                "licenses": [{"license": {"id": "Apache-2.0"}}],
                "properties": [{"name": "lathe:extras", "value": ",".join(sorted(set(extras)))}],
            }
        },
        "components": components,
        "dependencies": edges,
    }


def _needed(packages: dict[str, list[Json]], extras: list[str]) -> dict[str, set[str]]:
    """Extras that are asked of each package that is installed, by name."""
    found: dict[str, set[str]] = {}
    waiting = [(ROOT, "")]
    (root,) = packages[ROOT]
    waiting += [(ROOT, extra) for extra in extras if root["optional-dependencies"][extra] is not None]
    while waiting:
        name, extra = waiting.pop()
        if extra in found.setdefault(name, set()):
            continue
        found[name].add(extra)
        for package in packages[name]:
            wanted = (
                package.get("optional-dependencies", {}).get(extra, ()) if extra else package.get("dependencies", ())
            )
            for item in wanted:
                waiting += [(item["name"], ""), *((item["name"], e) for e in item.get("extra", ()))]
    return found


def _component(package: Json) -> Json:
    files = [*package.get("wheels", ()), *([package["sdist"]] if "sdist" in package else ())]
    return {
        "type": "library",
        "bom-ref": _reference(package),
        "name": package["name"],
        "version": package["version"],
        "purl": _reference(package),
        # One per file that may be installed: which one it is depends on the platform.
        "externalReferences": [
            {
                "type": "distribution",
                "url": file["url"],
                "hashes": [{"alg": "SHA-256", "content": file["hash"].removeprefix("sha256:")}],
            }
            for file in files
        ],
    }


def _edges(package: Json, packages: dict[str, list[Json]], needed: dict[str, set[str]]) -> Json:
    asked = needed[package["name"]]
    items = [*package.get("dependencies", ())]
    items += [i for e in sorted(asked - {""}) for i in package.get("optional-dependencies", {}).get(e, ())]
    targets = {_reference(p) for item in items for p in packages[item["name"]]} - {_reference(package)}
    return {"ref": _reference(package), "dependsOn": sorted(targets)}


def _reference(package: Json) -> str:
    return f"pkg:pypi/{package['name']}@{package['version']}"


if __name__ == "__main__":
    sys.stdout.write(json.dumps(bill(LOCK.read_bytes(), sys.argv[1:]), indent=1) + "\n")
