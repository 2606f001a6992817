"""CAT-Seg: aggregation of a cost volume between CLIP's dense features and the names."""
