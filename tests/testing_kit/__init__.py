# SPDX-License-Identifier: Apache-2.0
"""Tests of what `sa_asherah.testing` and the pytest plugin give to applications."""
