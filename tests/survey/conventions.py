"""Where hesse and stock may differ, and why: documented conventions, each with its reason.

A key is the name of an entry, or of one of its samples.
"""

DIFFERENT: dict[str, str] = {}
