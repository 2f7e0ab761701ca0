# SPDX-License-Identifier: Apache-2.0
"""Random histories of an application, on encrypted columns and on a plain twin: never a difference."""
