# SPDX-License-Identifier: Apache-2.0
"""Encrypting and re-encrypting data while an application uses it: a plan says what becomes what, a job does it.

To read it: `job` has the steps. `converter` is the table: `pages` reads it, `conversion` and `values` open and seal
what is in it (`form` and those beside it know how values stand there), `swap` writes it. `rounds` and `lease` are the
work that is left, as the tables of progress (`tables`) have it; `crew` and `worker` do it.
"""

from sa_asherah.reencrypt.job import Job, require_finished
from sa_asherah.reencrypt.plan import Change, Plan
from sa_asherah.reencrypt.report import Estimate, Report

__all__ = ["Change", "Estimate", "Job", "Plan", "Report", "require_finished"]
