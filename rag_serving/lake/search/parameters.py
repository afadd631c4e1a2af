"""Search parameters for serving and the quality gate."""

DEPTH = 30
"""Minimum rows of a ranking to fuse; a hit's place in the other list matters even below the last hit shown."""
CAPPED_DEPTH = 3
"""Times as many rows to read if the passages of a document are limited, because others are dropped."""
DEEPENING = 4
"""Times as many rows to read again if that leaves too few hits."""
MOST_DEPTH = 1_500
"""Rows of a ranking from which on it is not deepened."""
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
MOST_LANGUAGES = 3
"""Languages of a table in which a question's words are stemmed."""
MAIN_LANGUAGE_SHARE = 0.01
"""Share of a table's passages from which on a language is one of them."""
WORDS_WEIGHT = 0.6
"""Weight of words in the fusion; the rest is that of vectors, which are scaled over a shorter range."""
FOREIGN_WEIGHT = 0.005
"""Weight of vectors by a model that does not read the question's language: they order only what words do not."""
CORRECTION_DEPTH = 20
"""Passages among whose words the correct spelling is looked for."""
RARE_DOCUMENTS = 3
"""Most documents that have a name which puts them first."""
