"""Experiments on trained models and on recipes: one Make target a module, each leaves a page of figures."""
