# SPDX-License-Identifier: Apache-2.0
"""Real servers for the tests: on loopback, on random ports, without root, ended by who started them."""

from __future__ import annotations
