"""Experiments on trained models and recipes: each module is one Make target and writes a page of figures."""
