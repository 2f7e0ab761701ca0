# SPDX-License-Identifier: Apache-2.0
"""Re-encrypting live data."""
