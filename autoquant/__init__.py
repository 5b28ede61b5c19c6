"""autoquant: the fastest and smallest per-layer quantization of a transformer within an accuracy budget, proved on unseen data."""
