# SPDX-License-Identifier: Apache-2.0
"""The published package `asherah`, as a program: it never runs in the process of the tests, nor after a fork.

Run by its path, configured by the environment. A key table in SQLite is the file `keys.sqlite` of the current folder,
since the package records the name of the file and refuses another one. Each line of standard input is a JSON list of
`[operation, partition, text]`: `encrypt` takes base64 and gives a data row record, `decrypt` the other way round.
Each line of standard output is the list of results, each `[true, text]` or `[false, error]`.
"""

from __future__ import annotations

import base64
import json
import sys

import asherah


def answer(factory: asherah.SessionFactory, operation: str, partition: str, text: str) -> tuple[bool, str]:
    """Answer one request."""
    try:
        session = factory.get_session(partition)
        if operation == "encrypt":
            return True, session.encrypt_bytes(base64.b64decode(text))
        return True, base64.b64encode(session.decrypt_bytes(text)).decode()
    except RuntimeError as error:
        return False, str(error)


def main() -> None:
    """Answer line by line, all with one session factory."""
    with asherah.SessionFactory.from_env() as factory:
        for line in sys.stdin:
            json.dump([answer(factory, *request) for request in json.loads(line)], sys.stdout)
            sys.stdout.write("\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
