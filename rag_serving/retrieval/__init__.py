"""From a question to ranked passages: plan, search, fusion, reranking."""
