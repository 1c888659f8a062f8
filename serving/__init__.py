"""From a bundle to a homepage: store, retrieval, ranking, page, Triton Server."""
