"""The foundation model, in data-flow order: schema, events, embedding, transformer, heads, model, bundle."""
