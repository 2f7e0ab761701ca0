# SPDX-License-Identifier: Apache-2.0
"""For the tests of applications: assertions about what the database holds, and canaries that show leaks.

Nothing here needs pytest; its fixtures are in `sa_asherah.testing.plugin`, which pytest finds by itself.
"""

from sa_asherah.testing.at_rest import assert_encrypted_at_rest
from sa_asherah.testing.attach import AttachEngines, static_asherah
from sa_asherah.testing.canaries import LeakCanaries
from sa_asherah.testing.swaps import SwapReport, assert_swaps_refused

__all__ = [
    "AttachEngines",
    "LeakCanaries",
    "SwapReport",
    "assert_encrypted_at_rest",
    "assert_swaps_refused",
    "static_asherah",
]
