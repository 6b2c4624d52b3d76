"""Attention operations of dlm-lens: tensors in, tensors out; knows nothing of models.

Each operation is a package ``<op>/`` holding ``reference.py``, its meaning in plain PyTorch.
"""
