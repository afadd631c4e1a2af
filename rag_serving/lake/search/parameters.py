"""Search parameters for serving and the quality gate."""

DEPTH = 30
"""Minimum rows of a ranking to fuse; a hit's rank in the other list matters even below the last hit shown."""
PROBES = 20
"""Partitions of a shard's vector index to search. A partition has some 8,000 rows, so this covers most shards."""
COMPANY_PROBES = 60
"""Partitions of a company table to search. In a million rows, 20 found 0.94 of the nearest ten and 60 found 0.98, for
one more millisecond, because reading the rows dominates."""
FILTERED_PROBES = 60
"""Minimum partitions to search under a filter, which leaves few rows per partition."""
MAX_PROBES = 400
"""Maximum partitions of a company table to search for a narrow scope."""
REFINE = 4
