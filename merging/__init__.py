"""Merge large models, exactly and at scale, in JAX."""
