# SPDX-License-Identifier: Apache-2.0
"""What an attacker or an odd program does to the database, the key table and the statements, on real databases."""
