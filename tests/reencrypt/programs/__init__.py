# SPDX-License-Identifier: Apache-2.0
"""Programs of the tests as processes of their own."""
