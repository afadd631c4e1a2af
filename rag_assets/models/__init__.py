"""Export embedding models into the lake, distil static vectors, run models on a GPU, and keep them loaded."""
