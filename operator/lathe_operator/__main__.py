"""`python -m lathe_operator`: the operator. Settings come from the environment, see `lathe_operator.settings`."""

import argparse
import asyncio
import os
import sys

from lathe_operator.control import logs
from lathe_operator.control.run import run
from lathe_operator.settings import SettingsError, from_environment


def main() -> int:
    """The command line.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="lathe-operator", description="The operator of Lathe.")
    parser.add_argument("--port", type=int, default=8081, help="of /metrics, /healthz and /readyz; 0 for none")
    arguments = parser.parse_args()
    logs.configure()
    try:
        settings = from_environment(os.environ)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return asyncio.run(run(settings, port=arguments.port))


if __name__ == "__main__":
    sys.exit(main())
