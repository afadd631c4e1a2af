"""Parameters of searches that serving and the quality gate share."""

DEPTH = 30
"""Rows of each ranking that are fused at least: the second list's place of a hit matters beyond the last one shown."""
PROBES = 20
"""Partitions of a shard's vector index that are searched. A partition has some 8,000 rows, so that of most shards every
row is looked at."""

COMPANY_PROBES = 60
"""The same of a company table. Of a million rows 20 found 0.94 of the nearest ten and 60 found 0.98, for a millisecond
more: what takes time is to read what was found."""

FILTERED_PROBES = 60
"""The same under a filter, which leaves few rows of each partition."""

MAX_PROBES = 400
"""The same in a company table under a narrow scope."""
REFINE = 4
