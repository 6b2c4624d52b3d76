"""Weight pruning without retraining: magnitude, Wanda and SparseGPT, plain and with attention sinks discounted."""
