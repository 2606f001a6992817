"""CAT-Seg: aggregation of the cost volume of CLIP's dense features and class embeddings."""
