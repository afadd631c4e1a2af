"""Golden questions, retrieval metrics, and the verdict that a quality gate acts on."""
