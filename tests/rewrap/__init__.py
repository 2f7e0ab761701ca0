# SPDX-License-Identifier: Apache-2.0
"""Wrapping system keys anew, and making them ahead of time, on a key table in memory."""
