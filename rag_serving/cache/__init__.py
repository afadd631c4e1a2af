"""The semantic cache of answers: entries, stores, and the guards that admit a hit."""
