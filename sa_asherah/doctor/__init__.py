# SPDX-License-Identifier: Apache-2.0
"""Examines a key table and the encrypted columns of an application, also in a restored copy. It writes nothing."""

from __future__ import annotations

from sa_asherah.doctor.examination import examine
from sa_asherah.doctor.findings import Finding, Findings, Place
from sa_asherah.doctor.kinds import KINDS, Kind, Level

__all__ = ["KINDS", "Finding", "Findings", "Kind", "Level", "Place", "examine"]
