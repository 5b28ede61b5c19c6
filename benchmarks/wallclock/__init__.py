"""A whole search against other tools' searches on the same model, data and budget."""
