# SPDX-License-Identifier: Apache-2.0
"""Tests of what is told: events, loggers, metrics, spans."""
