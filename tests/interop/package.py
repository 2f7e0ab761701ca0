# SPDX-License-Identifier: Apache-2.0
"""The published package `asherah`, as a program: it never runs in the process of the tests, nor after a fork.

Run by its path. Configured by the environment; the key table is the file `keys.sqlite` of the current folder, since
the package records the name of the file and refuses another one. Standard input is a JSON list of
`[operation, partition, text]`: `encrypt` takes base64 and gives a data row record, `decrypt` the other way round.
Standard output is the list of results, each `[true, text]` or `[false, error]`.
"""

from __future__ import annotations

import base64
import json
import sys

import asherah


def main() -> None:
    """Answer the requests, all with one session factory."""
    results: list[tuple[bool, str]] = []
    with asherah.SessionFactory.from_env() as factory:
        for operation, partition, text in json.load(sys.stdin):
            session = factory.get_session(partition)
            try:
                if operation == "encrypt":
                    results.append((True, session.encrypt_bytes(base64.b64decode(text))))
                else:
                    results.append((True, base64.b64encode(session.decrypt_bytes(text)).decode()))
            except RuntimeError as error:
                results.append((False, str(error)))
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
