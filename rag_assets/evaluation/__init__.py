"""Golden questions, retrieval metrics, and the verdict of the quality gate."""
