"""The semantic cache of answers: entries, stores, and the guards that decide on hits."""
